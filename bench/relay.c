/*
 * The wire of bench.wan: carries IP packets between two network namespaces, late, at a limited
 * rate, through a queue of limited length, with some lost and some out of order.
 *
 *     relay PID
 *
 * A TUN device called "tun0" appears in the network namespace that this starts in (the left one)
 * and another in that of process PID (the right one); then "ready" is printed. Both hosts' kernels
 * do the rest, so that TCP and any program on UDP run over the very same wire. As with a network
 * card, a host hands over trains of segments (TSO, USO), which are cut here, and what follows on
 * each other is put together again where it arrives (GRO). In between, one packet is one packet,
 * delayed and lost by itself. What is due within 0.1 ms is delivered at once, which is what a card
 * does to spare its host an interrupt for each packet.
 *
 * Standard input is read for lines of six numbers, each for both directions:
 *
 *     delay in us, rate in bit/s (0: no limit), queue in us, loss 0..1, reordering 0..1, seed
 *
 * Whether a packet is lost or put out of order depends on the seed, its direction and how many came
 * before it since the line: with one seed, two programs have to do with the same bad luck.
 *
 * Each line is answered with one line that sums up both directions until then: packets that were
 * delivered, lost, too many for the queue, put out of order, and delivered later than they should
 * have been by more than a millisecond. The last two tell whether the relay did what it was asked.
 * At the end of the input the relay ends, and its devices with it.
 *
 * It is in C because a packet has 12 us at 1 Gbit/s, on a machine where two programs under test
 * need the processors.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* What the headers of kernels before 6.2 do not have. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

/* Bytes of an IP packet: what an Ethernet carries, and what the devices are left at. */
#define LARGEST 1500
/* Packets that a direction holds: 0.2 s of the largest at 1 Gbit/s, and many more small ones. */
#define SLOTS 32768u
/* Bytes of a train of them, and how many it has at most: the kernel allows UDP so many. */
#define LARGEST_TRAIN 65535
#define LONGEST_TRAIN 128
/* Packets moved before the other direction has its turn. */
#define BURST 128
/* ns between two looks at what has come and what is due, as long as anything is. */
#define TICK 100000
/* A packet out of order leaves behind so many that came after it: 3 is what TCP takes for loss. */
#define OVERTAKERS 3
/* Those that wait to be overtaken at one time; beyond that a packet keeps its place. */
#define MOST_HELD 16
/* ns that such a packet waits when nothing overtakes it. */
#define LONGEST_HELD 5000000
/* ns after its time from which on a packet counts as late. */
#define LATE 1000000

struct packet {
    uint64_t due; /* ns: when it is delivered */
    unsigned length;
    int waits_for; /* packets that have yet to overtake it */
    uint64_t train; /* a number of its own for each train, or single packet */
    unsigned place; /* in the train */
    unsigned header; /* bytes of the headers of IP and TCP or UDP, in a train */
    unsigned char kind; /* VIRTIO_NET_HDR_GSO_... of the train */
    unsigned checksum_start, checksum_offset; /* 0: there is nothing left to compute */
    unsigned char bytes[LARGEST];
};

struct direction {
    int from, to;
    uint64_t link_free; /* ns: when the link has sent what it was given */
    uint64_t number; /* of packets that were not too many for the queue, since the last line */
    struct packet *packets;
    uint32_t free[SLOTS], free_count;
    uint32_t line[SLOTS], first, next; /* in order of delivery, a ring */
    uint32_t held[MOST_HELD];
    int held_count;
};

struct settings {
    uint64_t delay, queue; /* ns */
    uint64_t seed;
    double rate, loss, reordering;
};

struct counts {
    unsigned long delivered, lost, overflowed, reordered, late;
};

static struct settings settings;
static struct counts counts;
static uint64_t trains;
static unsigned char arrival[sizeof(struct virtio_net_hdr) + LARGEST_TRAIN];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int open_device(void)
{
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR};
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    int size = sizeof(struct virtio_net_hdr);

    if (device < 0)
        die("/dev/net/tun");
    strcpy(request.ifr_name, "tun0");
    if (ioctl(device, TUNSETIFF, &request) < 0)
        die("TUNSETIFF");
    if (ioctl(device, TUNSETVNETHDRSZ, &size) < 0)
        die("TUNSETVNETHDRSZ");
    /* Kernels before 6.2 know no USO: they cut the trains of UDP themselves. Others have it for both
     * versions of IP or for none; there is no IPv6 here. */
    if (ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_USO4 | TUN_F_USO6) < 0 &&
        ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0)
        die("TUNSETOFFLOAD");
    return device;
}

static void enter_namespace_of(const char *pid)
{
    char path[64];
    int namespace;

    snprintf(path, sizeof path, "/proc/%s/ns/net", pid);
    namespace = open(path, O_RDONLY | O_CLOEXEC);
    if (namespace < 0 || setns(namespace, CLONE_NEWNET) < 0)
        die(path);
    close(namespace);
}

static void prepare(struct direction *direction, int from, int to)
{
    direction->from = from;
    direction->to = to;
    direction->packets = calloc(SLOTS, sizeof *direction->packets);
    if (direction->packets == NULL)
        die("memory");
    /* A stack: the slot used last is used next, while it is in the processor's cache. */
    while (direction->free_count < SLOTS) {
        direction->free[direction->free_count] = direction->free_count;
        direction->free_count++;
    }
}

static void append(struct direction *direction, uint32_t slot)
{
    direction->line[direction->next++ % SLOTS] = slot;
}

/* Lets the packets that are held back go once they were overtaken, or once it took too long. */
static void release_held(struct direction *direction, int overtaken, uint64_t due)
{
    int kept = 0;

    for (int index = 0; index < direction->held_count; index++) {
        uint32_t slot = direction->held[index];
        struct packet *packet = &direction->packets[slot];

        packet->waits_for -= overtaken;
        if (packet->waits_for <= 0 || due > packet->due + LONGEST_HELD) {
            packet->due = due;
            append(direction, slot);
        } else {
            direction->held[kept++] = slot;
        }
    }
    direction->held_count = kept;
}

/* Returns 0..1 for the next packet of a direction: SplitMix64 (Steele, Lea and Flood, 2014). */
static double draw(struct direction *direction)
{
    uint64_t bits = (settings.seed << 48) + ((uint64_t)direction->from << 40);

    bits = (bits + ++direction->number) * 0x9e3779b97f4a7c15u;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
    return (double)((bits ^ bits >> 31) >> 11) * 0x1p-53;
}

/* Decides what becomes of a packet that has arrived. Returns whether it needs its slot. */
static int accept_packet(struct direction *direction, uint32_t slot, uint64_t time)
{
    struct packet *packet = &direction->packets[slot];
    uint64_t start = direction->link_free > time ? direction->link_free : time;
    double luck;

    if (start - time > settings.queue) {
        counts.overflowed++;
        return 0;
    }
    if (settings.rate > 0)
        start += (uint64_t)(packet->length * 8e9 / settings.rate);
    direction->link_free = start;
    luck = draw(direction);
    if (luck < settings.loss) {
        counts.lost++;
        return 0;
    }
    packet->due = start + settings.delay;
    if (direction->held_count < MOST_HELD && luck > 1 - settings.reordering) {
        packet->waits_for = OVERTAKERS;
        direction->held[direction->held_count++] = slot;
        counts.reordered++;
        return 1;
    }
    append(direction, slot);
    release_held(direction, 1, packet->due);
    return 1;
}

static unsigned get16(const unsigned char *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static void put16(unsigned char *at, unsigned value)
{
    at[0] = (unsigned char)(value >> 8);
    at[1] = (unsigned char)value;
}

static unsigned fold(unsigned long sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (unsigned)sum;
}

/* Gives an IPv4 packet its length, and both checksums what follows from that: the one of TCP or UDP
 * holds the sum of the pseudo-header only, which has the length in it. */
static void set_length(unsigned char *bytes, unsigned length, unsigned start, unsigned offset)
{
    unsigned char *checksum = bytes + start + offset;
    unsigned long sum = 0;

    put16(checksum, fold(get16(checksum) + 0xffffu - get16(bytes + 2) + length));
    put16(bytes + 2, length);
    put16(bytes + 10, 0);
    for (unsigned at = 0; at < start; at += 2)
        sum += get16(bytes + at);
    put16(bytes + 10, ~fold(sum) & 0xffff);
}

/* Makes the packet at this place of a train, the first of which has `bytes` as its headers. */
static void cut(struct packet *packet, const struct virtio_net_hdr *hints,
                const unsigned char *bytes, unsigned length)
{
    unsigned from = packet->header + packet->place * hints->gso_size;
    unsigned size = from + hints->gso_size < length ? hints->gso_size : length - from;
    unsigned char *transport = packet->bytes + hints->csum_start;

    memcpy(packet->bytes, bytes, packet->header);
    memcpy(packet->bytes + packet->header, bytes + from, size);
    packet->length = packet->header + size;
    put16(packet->bytes + 4, (get16(bytes + 4) + packet->place) & 0xffff); /* identification */
    set_length(packet->bytes, packet->length, hints->csum_start, hints->csum_offset);
    if (packet->kind == VIRTIO_NET_HDR_GSO_TCPV4) {
        uint32_t sequence;

        memcpy(&sequence, transport + 4, 4);
        sequence = htonl(ntohl(sequence) + packet->place * hints->gso_size);
        memcpy(transport + 4, &sequence, 4);
        if (from + size < length)
            transport[13] &= (unsigned char)~0x09; /* FIN and PSH are the last one's */
        if (packet->place > 0)
            transport[13] &= 0x7f; /* CWR is the first one's */
    } else {
        put16(transport + 4, packet->length - hints->csum_start);
    }
}

/* Returns the bytes of the headers of a train; 0 for what is none. */
static unsigned header_of(const struct virtio_net_hdr *hints, const unsigned char *bytes)
{
    switch (hints->gso_type & ~VIRTIO_NET_HDR_GSO_ECN) {
    case VIRTIO_NET_HDR_GSO_TCPV4:
        return hints->csum_start + (bytes[hints->csum_start + 12] >> 4) * 4u;
    case VIRTIO_NET_HDR_GSO_UDP_L4:
        return bytes[0] >> 4 == 4 ? hints->csum_start + 8u : 0;
    }
    return 0;
}

static void receive(struct direction *direction)
{
    struct virtio_net_hdr hints;
    uint64_t time = now();

    for (int moved = 0; moved < BURST && direction->free_count > LONGEST_TRAIN;) {
        unsigned char *bytes = arrival + sizeof hints;
        ssize_t taken = read(direction->from, arrival, sizeof arrival);
        unsigned length, header, end;

        if (taken <= (ssize_t)sizeof hints)
            return;
        length = (unsigned)taken - (unsigned)sizeof hints;
        memcpy(&hints, arrival, sizeof hints);
        header = header_of(&hints, bytes);
        trains++;
        if (header == 0) {
            hints.gso_size = LARGEST;
            if (length > LARGEST)
                continue; /* a train of a kind that was not asked for */
        }
        end = header == 0 ? 1 : (length - header + hints.gso_size - 1u) / hints.gso_size;
        for (unsigned place = 0; place < end && direction->free_count > 0; place++, moved++) {
            uint32_t slot = direction->free[direction->free_count - 1];
            struct packet *packet = &direction->packets[slot];

            packet->train = trains;
            packet->place = place;
            packet->header = header;
            packet->kind = hints.gso_type & (unsigned char)~VIRTIO_NET_HDR_GSO_ECN;
            packet->checksum_start = packet->checksum_offset = 0;
            if (hints.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) {
                packet->checksum_start = hints.csum_start;
                packet->checksum_offset = hints.csum_offset;
            }
            if (header == 0) {
                packet->length = length;
                memcpy(packet->bytes, bytes, length);
            } else {
                cut(packet, &hints, bytes, length);
            }
            direction->free_count -= (uint32_t)accept_packet(direction, slot, time);
        }
    }
}

/* Returns how many packets at the head of the line are due and make one train. */
static unsigned due_train(const struct direction *direction, uint64_t time)
{
    const struct packet *first = &direction->packets[direction->line[direction->first % SLOTS]];
    unsigned count = 1;

    while (first->header > 0 && direction->first + count != direction->next) {
        uint32_t slot = direction->line[(direction->first + count) % SLOTS];
        const struct packet *packet = &direction->packets[slot];

        if (packet->due > time || packet->train != first->train ||
            packet->place != first->place + count)
            break;
        count++;
    }
    return count;
}

/* Hands the first packets of the line to a host as one train, or the only one as it is. */
static int hand_over(struct direction *direction, unsigned count)
{
    struct packet *first = &direction->packets[direction->line[direction->first % SLOTS]];
    struct virtio_net_hdr hints = {0};
    struct iovec parts[LONGEST_TRAIN + 1] = {{&hints, sizeof hints},
                                             {first->bytes, first->length}};
    unsigned length = first->length;

    if (first->checksum_start > 0) {
        hints.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
        hints.csum_start = (uint16_t)first->checksum_start;
        hints.csum_offset = (uint16_t)first->checksum_offset;
    }
    if (count > 1) {
        unsigned char *transport = first->bytes + first->checksum_start;

        hints.gso_type = first->kind;
        hints.gso_size = (uint16_t)(first->length - first->header);
        hints.hdr_len = (uint16_t)first->header;
        for (unsigned index = 1; index < count; index++) {
            uint32_t slot = direction->line[(direction->first + index) % SLOTS];
            struct packet *packet = &direction->packets[slot];

            parts[index + 1].iov_base = packet->bytes + packet->header;
            parts[index + 1].iov_len = packet->length - packet->header;
            length += packet->length - packet->header;
            if (first->kind == VIRTIO_NET_HDR_GSO_TCPV4)
                transport[13] |= packet->bytes[packet->checksum_start + 13] & 0x09;
        }
        set_length(first->bytes, length, first->checksum_start, first->checksum_offset);
        if (first->kind == VIRTIO_NET_HDR_GSO_UDP_L4)
            put16(transport + 4, length - first->checksum_start);
    }
    return writev(direction->to, parts, (int)count + 1) > 0;
}

static void deliver(struct direction *direction)
{
    uint64_t time = now();

    release_held(direction, 0, time);
    for (unsigned moved = 0; moved < BURST && direction->first != direction->next;) {
        uint32_t slot = direction->line[direction->first % SLOTS];
        unsigned count;

        if (direction->packets[slot].due > time)
            return;
        count = due_train(direction, time);
        moved += count;
        /* A full or closed device is the host's loss, as on any network card. */
        if (hand_over(direction, count))
            counts.delivered += count;
        while (count-- > 0) {
            slot = direction->line[direction->first++ % SLOTS];
            counts.late += time > direction->packets[slot].due + LATE;
            direction->free[direction->free_count++] = slot;
        }
    }
}

static int is_idle(const struct direction *direction)
{
    return direction->first == direction->next && direction->held_count == 0;
}

/* Returns whether there may be more to come. */
static int obey(struct direction *directions)
{
    char line[256];
    double delay, queue;

    if (fgets(line, sizeof line, stdin) == NULL)
        return 0;
    if (sscanf(line, "%lf %lf %lf %lf %lf %" SCNu64, &delay, &settings.rate, &queue,
               &settings.loss, &settings.reordering, &settings.seed) != 6) {
        fprintf(stderr, "relay: six numbers were expected, not %s", line);
        exit(2);
    }
    settings.delay = (uint64_t)(delay * 1e3);
    settings.queue = (uint64_t)(queue * 1e3);
    directions[0].number = directions[1].number = 0;
    printf("%lu %lu %lu %lu %lu\n", counts.delivered, counts.lost, counts.overflowed,
           counts.reordered, counts.late);
    memset(&counts, 0, sizeof counts);
    return 1;
}

int main(int argc, char **argv)
{
    static struct direction directions[2];
    struct pollfd watched[3] = {{.fd = 0, .events = POLLIN}};
    int left, right;

    if (argc != 2) {
        fprintf(stderr, "usage: relay PID\n");
        return 2;
    }
    /* A late wire is no wire: it goes before the programs under test, where that is allowed. */
    setpriority(PRIO_PROCESS, 0, -15);
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    /* One line at a time, so that poll(2) knows of all that has not been read. */
    setvbuf(stdin, NULL, _IONBF, 0);
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    left = open_device();
    enter_namespace_of(argv[1]);
    right = open_device();
    prepare(&directions[0], left, right);
    prepare(&directions[1], right, left);
    watched[1] = (struct pollfd){.fd = left, .events = POLLIN};
    watched[2] = (struct pollfd){.fd = right, .events = POLLIN};
    puts("ready");
    for (;;) {
        int idle = is_idle(&directions[0]) && is_idle(&directions[1]);
        struct timespec tick = {0, TICK};

        /* With packets on the way, others may come at any time: they are looked for at each tick. */
        if (ppoll(watched, idle ? 3 : 1, idle ? NULL : &tick, NULL) > 0 && watched[0].revents &&
            !obey(directions))
            return 0;
        for (int index = 0; index < 2; index++) {
            receive(&directions[index]);
            deliver(&directions[index]);
        }
    }
}
