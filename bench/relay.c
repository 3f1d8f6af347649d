/*
 * The wire of bench.wan: carries IP packets between two network namespaces, late, at a limited
 * rate, through a queue of limited length, with some lost and some out of order.
 *
 *     relay PID
 *
 * A TUN device called "tun0" appears in the network namespace that this starts in (the left one)
 * and another in that of process PID (the right one); then "ready" is printed. Both hosts' kernels
 * do the rest, so that TCP and any program on UDP run over the very same wire. The devices have no
 * offload: one packet is one packet, delayed and lost by itself.
 *
 * Standard input is read for lines of five numbers, each for both directions:
 *
 *     delay in us, rate in bit/s (0: no limit), queue in us, loss 0..1, reordering 0..1
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
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* Bytes of an IP packet: what an Ethernet carries, and what the devices are left at. */
#define LARGEST 1500
/* Packets that a direction holds: 0.2 s of the largest at 1 Gbit/s, and many more small ones. */
#define SLOTS 32768u
/* Packets moved before the other direction has its turn. */
#define BURST 64
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
    unsigned char bytes[LARGEST];
};

struct direction {
    int from, to;
    uint64_t link_free; /* ns: when the link has sent what it was given */
    struct packet *packets;
    uint32_t free[SLOTS], free_count;
    uint32_t line[SLOTS], first, next; /* in order of delivery, a ring */
    uint32_t held[MOST_HELD];
    int held_count;
};

struct settings {
    uint64_t delay, queue; /* ns */
    double rate, loss, reordering;
};

struct counts {
    unsigned long delivered, lost, overflowed, reordered, late;
};

static struct settings settings;
static struct counts counts;

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
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

    if (device < 0)
        die("/dev/net/tun");
    strcpy(request.ifr_name, "tun0");
    if (ioctl(device, TUNSETIFF, &request) < 0)
        die("TUNSETIFF");
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

/* Decides what becomes of a packet that has arrived. Returns whether it needs its slot. */
static int accept_packet(struct direction *direction, uint32_t slot, uint64_t time)
{
    struct packet *packet = &direction->packets[slot];
    uint64_t start = direction->link_free > time ? direction->link_free : time;

    if (start - time > settings.queue) {
        counts.overflowed++;
        return 0;
    }
    if (settings.rate > 0)
        start += (uint64_t)(packet->length * 8e9 / settings.rate);
    direction->link_free = start;
    if (drand48() < settings.loss) {
        counts.lost++;
        return 0;
    }
    packet->due = start + settings.delay;
    if (direction->held_count < MOST_HELD && drand48() < settings.reordering) {
        packet->waits_for = OVERTAKERS;
        direction->held[direction->held_count++] = slot;
        counts.reordered++;
        return 1;
    }
    append(direction, slot);
    release_held(direction, 1, packet->due);
    return 1;
}

static void receive(struct direction *direction)
{
    uint64_t time = now();

    for (int index = 0; index < BURST && direction->free_count > 0; index++) {
        uint32_t slot = direction->free[direction->free_count - 1];
        struct packet *packet = &direction->packets[slot];
        ssize_t length = read(direction->from, packet->bytes, LARGEST);

        if (length <= 0)
            return;
        packet->length = (unsigned)length;
        direction->free_count -= (uint32_t)accept_packet(direction, slot, time);
    }
}

static void deliver(struct direction *direction)
{
    uint64_t time = now();

    release_held(direction, 0, time);
    for (int index = 0; index < BURST && direction->first != direction->next; index++) {
        uint32_t slot = direction->line[direction->first % SLOTS];
        struct packet *packet = &direction->packets[slot];

        if (packet->due > time)
            return;
        /* A full or closed device is the host's loss, as on any network card. */
        if (write(direction->to, packet->bytes, packet->length) > 0)
            counts.delivered++;
        counts.late += time > packet->due + LATE;
        direction->free[direction->free_count++] = slot;
        direction->first++;
    }
}

/* Returns ns until something has to be delivered. */
static uint64_t patience(const struct direction *direction, uint64_t time)
{
    uint64_t due = time + (direction->held_count > 0 ? LONGEST_HELD : 1000000000u);

    if (direction->first != direction->next) {
        uint64_t first = direction->packets[direction->line[direction->first % SLOTS]].due;

        if (first < due)
            due = first;
    }
    return due > time ? due - time : 0;
}

/* Returns whether there may be more to come. */
static int obey(void)
{
    char line[256];
    double delay, queue;

    if (fgets(line, sizeof line, stdin) == NULL)
        return 0;
    if (sscanf(line, "%lf %lf %lf %lf %lf", &delay, &settings.rate, &queue, &settings.loss,
               &settings.reordering) != 5) {
        fprintf(stderr, "relay: five numbers were expected, not %s", line);
        exit(2);
    }
    settings.delay = (uint64_t)(delay * 1e3);
    settings.queue = (uint64_t)(queue * 1e3);
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
        uint64_t time = now();
        uint64_t first = patience(&directions[0], time), second = patience(&directions[1], time);
        uint64_t wait = first < second ? first : second;
        struct timespec limit = {(time_t)(wait / 1000000000u), (long)(wait % 1000000000u)};

        if (ppoll(watched, 3, &limit, NULL) > 0 && watched[0].revents && !obey())
            return 0;
        for (int index = 0; index < 2; index++) {
            if (watched[index + 1].revents & POLLIN)
                receive(&directions[index]);
            deliver(&directions[index]);
        }
    }
}
