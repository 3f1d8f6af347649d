"""LAYER 4: the encrypted tunnel on an asyncio loop; its streams are asyncio transports."""
