/*
 * guest.h - the few lines every C agent needs around the guest/1 ABI:
 * the request on stdin, the result on stdout, the log on stderr, exit code 0 = completed.
 *
 * Only read(), write(), malloc() and _Exit() are used, so that a module stays a few KB: stdio and
 * its floating point formatting would be ten times what most agents are.
 */
#ifndef ZEROSTATE_GUEST_H
#define ZEROSTATE_GUEST_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Exit codes that all the examples share. */
enum { GUEST_REFUSED = 1, GUEST_USAGE = 2, GUEST_NO_MEMORY = 3 };

static void guest_write(int fd, const void *data, size_t size) {
    const char *at = data;
    while (size > 0) {
        ssize_t wrote = write(fd, at, size);
        if (wrote <= 0) { /* the host's output limit, or a closed pipe */
            static const char why[] = "cannot write the output\n";
            if (fd == 2 || write(2, why, sizeof why - 1) < 0) _Exit(GUEST_REFUSED);
            _Exit(GUEST_REFUSED);
        }
        at += wrote;
        size -= (size_t)wrote;
    }
}

static _Noreturn void guest_fail(int code, const char *message) {
    guest_write(2, message, strlen(message));
    guest_write(2, "\n", 1);
    _Exit(code);
}

static void *guest_alloc(size_t size) {
    void *block = malloc(size ? size : 1);
    if (!block) guest_fail(GUEST_NO_MEMORY, "out of memory");
    return block;
}

static void *guest_resize(void *block, size_t size) {
    block = realloc(block, size ? size : 1);
    if (!block) guest_fail(GUEST_NO_MEMORY, "out of memory");
    return block;
}

/* All of stdin, with a NUL after its end. More than `max` bytes is refused. */
static unsigned char *guest_read_all(size_t max, size_t *size) {
    size_t room = 16384, have = 0;
    unsigned char *data = guest_alloc(room + 1);
    for (;;) {
        ssize_t got = read(0, data + have, room - have);
        if (got < 0) guest_fail(GUEST_REFUSED, "cannot read the input");
        if (got == 0) break;
        have += (size_t)got;
        if (have > max) guest_fail(GUEST_REFUSED, "the input is too large");
        if (have == room) data = guest_resize(data, (room *= 2) + 1);
    }
    data[have] = 0;
    *size = have;
    return data;
}

/* -- buffered output: nothing is written until guest_flush, or until 32 KiB wait ------------ */
static char guest_out[32768];
static size_t guest_out_used;

static void guest_flush(void) {
    guest_write(1, guest_out, guest_out_used);
    guest_out_used = 0;
}

static void guest_put(const void *data, size_t size) {
    if (size > sizeof guest_out - guest_out_used) {
        guest_flush();
        if (size > sizeof guest_out) {
            guest_write(1, data, size);
            return;
        }
    }
    memcpy(guest_out + guest_out_used, data, size);
    guest_out_used += size;
}

static void guest_puts(const char *text) { guest_put(text, strlen(text)); }

#endif
