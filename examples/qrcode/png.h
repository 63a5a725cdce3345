/*
 * png.h - a two-colour image as PNG: one bit a pixel, a palette of two.
 *
 * The compressor knows what it compresses: a row is mostly the row above again, or one byte again
 * and again. Those two distances with the fixed Huffman codes of RFC 1951 make it some fifty lines.
 */
#ifndef QRCODE_PNG_H
#define QRCODE_PNG_H

#include "guest.h"

typedef struct {
    uint8_t *bytes;
    size_t used, room;
    uint32_t pending; /* bits not yet a byte, lowest first */
    int pending_bits;
} Sink;

static void sink_byte(Sink *s, uint8_t byte) {
    if (s->used == s->room) s->bytes = guest_resize(s->bytes, s->room = s->room ? s->room * 2 : 4096);
    s->bytes[s->used++] = byte;
}

static void sink_bits(Sink *s, uint32_t value, int count) {
    s->pending |= value << s->pending_bits;
    s->pending_bits += count;
    while (s->pending_bits >= 8) {
        sink_byte(s, (uint8_t)s->pending);
        s->pending >>= 8;
        s->pending_bits -= 8;
    }
}

/* Huffman codes go highest bit first. */
static void sink_code(Sink *s, uint32_t code, int count) {
    uint32_t turned = 0;
    for (int i = 0; i < count; i++) turned |= (code >> i & 1) << (count - 1 - i);
    sink_bits(s, turned, count);
}

static void sink_symbol(Sink *s, int symbol) {
    if (symbol < 144) sink_code(s, 0x30 + (uint32_t)symbol, 8);
    else if (symbol < 256) sink_code(s, 0x190 + (uint32_t)(symbol - 144), 9);
    else if (symbol < 280) sink_code(s, (uint32_t)(symbol - 256), 7);
    else sink_code(s, 0xC0 + (uint32_t)(symbol - 280), 8);
}

/* The code of a length (3..258) or a distance: a base, and extra bits above it. */
static void sink_match(Sink *s, int length, int distance) {
    if (length == 258) {
        sink_symbol(s, 285);
    } else {
        int code = 257, base = 3, extra = 0;
        while (length >= base + (1 << extra)) {
            base += 1 << extra;
            code++;
            extra = code < 265 ? 0 : (code - 261) / 4;
        }
        sink_symbol(s, code);
        sink_bits(s, (uint32_t)(length - base), extra);
    }
    int code = 0, base = 1, extra = 0;
    while (distance >= base + (1 << extra)) {
        base += 1 << extra;
        code++;
        extra = code < 4 ? 0 : (code - 2) / 2;
    }
    sink_code(s, (uint32_t)code, 5);
    sink_bits(s, (uint32_t)(distance - base), extra);
}

static size_t match_length(const uint8_t *data, size_t at, size_t size, size_t distance) {
    size_t n = 0;
    if (at < distance) return 0;
    while (at + n < size && n < 258 && data[at + n] == data[at + n - distance]) n++;
    return n;
}

static void sink_zlib(Sink *s, const uint8_t *data, size_t size, size_t row) {
    sink_byte(s, 0x78);
    sink_byte(s, 0x01);
    sink_bits(s, 3, 3); /* the last block, fixed codes */
    for (size_t i = 0; i < size;) {
        size_t above = match_length(data, i, size, row), same = match_length(data, i, size, 1);
        size_t n = above >= same ? above : same;
        if (n >= 3) {
            sink_match(s, (int)n, above >= same ? (int)row : 1);
            i += n;
        } else {
            sink_symbol(s, data[i++]);
        }
    }
    sink_symbol(s, 256);
    if (s->pending_bits) sink_bits(s, 0, 8 - s->pending_bits);
    uint32_t a = 1, b = 0;
    for (size_t i = 0; i < size; i++) a = (a + data[i]) % 65521, b = (b + a) % 65521;
    uint32_t sum = b << 16 | a;
    for (int shift = 24; shift >= 0; shift -= 8) sink_byte(s, (uint8_t)(sum >> shift));
}

static void big_endian(uint8_t *to, uint32_t value) {
    for (int i = 0; i < 4; i++) to[i] = (uint8_t)(value >> (24 - 8 * i));
}

static uint32_t crc_add(uint32_t crc, const uint8_t *data, size_t size) {
    static uint32_t table[256];
    if (!table[1])
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xEDB88320u : c >> 1;
            table[i] = c;
        }
    for (size_t i = 0; i < size; i++) crc = table[(crc ^ data[i]) & 255] ^ crc >> 8;
    return crc;
}

static void put_chunk(const char *kind, const uint8_t *data, size_t size) {
    uint8_t word[4];
    big_endian(word, (uint32_t)size);
    guest_put(word, 4);
    guest_put(kind, 4);
    guest_put(data, size);
    big_endian(word, ~crc_add(crc_add(~0u, (const uint8_t *)kind, 4), data, size));
    guest_put(word, 4);
}

/* `rows` holds for each line a zero (no filter) and `(side + 7) / 8` bytes, a set bit is dark. */
static void put_png(const uint8_t *rows, int side, const uint8_t light[3], const uint8_t dark[3]) {
    uint8_t head[13] = {0}, palette[6];
    size_t row = (size_t)(side + 7) / 8 + 1;
    Sink packed = {0};
    big_endian(head, (uint32_t)side);
    big_endian(head + 4, (uint32_t)side);
    head[8] = 1; /* bits */
    head[9] = 3; /* palette */
    memcpy(palette, light, 3);
    memcpy(palette + 3, dark, 3);
    sink_zlib(&packed, rows, row * (size_t)side, row);
    guest_put("\x89PNG\r\n\x1A\n", 8);
    put_chunk("IHDR", head, sizeof head);
    put_chunk("PLTE", palette, sizeof palette);
    put_chunk("IDAT", packed.bytes, packed.used);
    put_chunk("IEND", NULL, 0);
}

#endif
