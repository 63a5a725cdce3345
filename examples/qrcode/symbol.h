/*
 * symbol.h - text to the modules of a QR code (ISO/IEC 18004, model 2, versions 1 to 40).
 *
 * Steps, in order: split the text into modes so that the bits are fewest; pick the smallest
 * version that holds them; Reed-Solomon; draw; try the eight masks and keep the one that reads best.
 */
#ifndef QRCODE_SYMBOL_H
#define QRCODE_SYMBOL_H

#include <stdbool.h>
#include "guest.h"

enum { VERSION_MAX = 40, SIDE_MAX = 17 + 4 * VERSION_MAX, CODEWORDS_MAX = 3706, TEXT_MAX = 7089 };
enum { LEVEL_L, LEVEL_M, LEVEL_Q, LEVEL_H };

typedef struct {
    int version, level, mask, side;
    uint8_t dark[SIDE_MAX][SIDE_MAX];
    uint8_t fixed[SIDE_MAX][SIDE_MAX]; /* function patterns: no data, no mask */
} Symbol;

/* -- tables of the standard ------------------------------------------------------------------------- */
static const uint8_t check_bytes[4][VERSION_MAX + 1] = {
    {0,  7,  10, 15, 20, 26, 18, 20, 24, 30, 18, 20, 24, 26, 30, 22, 24, 28, 30, 28, 28,
     28, 28, 30, 30, 26, 28, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30},
    {0,  10, 16, 26, 18, 24, 16, 18, 22, 22, 26, 30, 22, 22, 24, 24, 28, 28, 26, 26, 26,
     26, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28},
    {0,  13, 22, 18, 26, 18, 24, 18, 22, 20, 24, 28, 26, 24, 20, 30, 24, 28, 28, 26, 30,
     28, 30, 30, 30, 30, 28, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30},
    {0,  17, 28, 22, 16, 22, 28, 26, 26, 24, 28, 24, 28, 22, 24, 24, 30, 28, 28, 26, 28,
     30, 24, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 30},
};
static const uint8_t block_counts[4][VERSION_MAX + 1] = {
    {0, 1, 1, 1,  1,  1,  2,  2,  2,  2,  4,  4,  4,  4,  4,  6,  6,  6,  6,  7, 8,
     8, 9, 9, 10, 12, 12, 12, 13, 14, 15, 16, 17, 18, 19, 19, 20, 21, 22, 24, 25},
    {0,  1,  1,  1,  2,  2,  4,  4,  4,  5,  5,  5,  8,  9,  9,  10, 10, 11, 13, 14, 16,
     17, 17, 18, 20, 21, 23, 25, 26, 28, 29, 31, 33, 35, 37, 38, 40, 43, 45, 47, 49},
    {0,  1,  1,  2,  2,  4,  4,  6,  6,  8,  8,  8,  10, 12, 16, 12, 17, 16, 18, 21, 20,
     23, 23, 25, 27, 29, 34, 34, 35, 38, 40, 43, 45, 48, 51, 53, 56, 59, 62, 65, 68},
    {0,  1,  1,  2,  4,  4,  4,  5,  6,  8,  8,  11, 11, 16, 16, 18, 16, 19, 21, 25, 25,
     25, 34, 30, 32, 35, 37, 40, 42, 45, 48, 51, 54, 57, 60, 63, 66, 70, 74, 77, 81},
};

/* Bits for data and check bytes together: all modules less the function patterns. */
static int raw_bits(int version) {
    int bits = (16 * version + 128) * version + 64;
    if (version >= 2) {
        int align = version / 7 + 2;
        bits -= (25 * align - 10) * align - 55;
        if (version >= 7) bits -= 36;
    }
    return bits;
}

static int data_bytes(int version, int level) {
    return raw_bits(version) / 8 - check_bytes[level][version] * block_counts[level][version];
}

/* -- modes --------------------------------------------------------------------------------------------- */
enum { NUMERIC, ALPHANUMERIC, BYTES, MODES };
static const uint8_t mode_bits[MODES] = {1, 2, 4};
static const uint8_t count_bits[MODES][3] = {{10, 12, 14}, {9, 11, 13}, {8, 16, 16}};

static int alphanumeric_value(uint8_t c) {
    static const char set[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:";
    const char *at = c ? strchr(set, c) : NULL;
    return at ? (int)(at - set) : -1;
}

static bool mode_holds(int mode, uint8_t c) {
    if (mode == NUMERIC) return c >= '0' && c <= '9';
    return mode == BYTES || alphanumeric_value(c) >= 0;
}

static int version_class(int version) { return version < 10 ? 0 : version < 27 ? 1 : 2; }

/*
 * The cheapest mode for each byte of the text, by dynamic programming; costs are sixths of a bit,
 * since three digits take ten bits and two alphanumerics eleven. Returns the bits in all.
 */
static int choose_modes(const uint8_t *text, int size, int class, uint8_t *modes) {
    static uint8_t from[TEXT_MAX][MODES]; /* the mode before, if this byte has that mode */
    const int char_cost[MODES] = {20, 33, 48}, never = 1 << 28;
    int head[MODES], cost[MODES];
    for (int m = 0; m < MODES; m++) head[m] = (4 + count_bits[m][class]) * 6;
    for (int i = 0; i < size; i++) {
        int next[MODES];
        for (int m = 0; m < MODES; m++) {
            int best = i ? never : head[m];
            from[i][m] = (uint8_t)m;
            for (int was = 0; i && was < MODES; was++) {
                int total = was == m ? cost[was] : (cost[was] + 5) / 6 * 6 + head[m];
                if (total < best) best = total, from[i][m] = (uint8_t)was;
            }
            next[m] = mode_holds(m, text[i]) && best < never ? best + char_cost[m] : never;
        }
        memcpy(cost, next, sizeof cost);
    }
    int last = 0;
    for (int m = 1; m < MODES; m++)
        if (cost[m] < cost[last]) last = m;
    int bits = (cost[last] + 5) / 6;
    for (int i = size - 1; i >= 0; i--) {
        modes[i] = (uint8_t)last;
        last = from[i][last];
    }
    return bits;
}

/* -- bits -------------------------------------------------------------------------------------------------- */
typedef struct {
    uint8_t bytes[CODEWORDS_MAX];
    int bits;
} Bits;

static void bits_add(Bits *b, uint32_t value, int count) {
    while (count-- > 0) {
        b->bytes[b->bits >> 3] |= (uint8_t)((value >> count & 1) << (7 - (b->bits & 7)));
        b->bits++;
    }
}

static void put_segment(Bits *b, const uint8_t *text, int size, int mode, int class) {
    bits_add(b, mode_bits[mode], 4);
    bits_add(b, (uint32_t)size, count_bits[mode][class]);
    if (mode == NUMERIC) {
        for (int i = 0; i < size; i += 3) {
            int n = size - i < 3 ? size - i : 3;
            uint32_t value = 0;
            for (int k = 0; k < n; k++) value = value * 10 + (uint32_t)(text[i + k] - '0');
            bits_add(b, value, n * 3 + 1);
        }
    } else if (mode == ALPHANUMERIC) {
        for (int i = 0; i < size; i += 2) {
            uint32_t value = (uint32_t)alphanumeric_value(text[i]);
            if (i + 1 < size) bits_add(b, value * 45 + (uint32_t)alphanumeric_value(text[i + 1]), 11);
            else bits_add(b, value, 6);
        }
    } else {
        for (int i = 0; i < size; i++) bits_add(b, text[i], 8);
    }
}

/* -- Reed-Solomon over GF(256), polynomial 0x11D --------------------------------------------------------- */
static uint8_t gf_times(uint8_t x, uint8_t y) {
    uint32_t z = 0;
    for (int i = 7; i >= 0; i--) z = (z << 1) ^ ((z >> 7) * 0x11D) ^ ((y >> i & 1u) * x);
    return (uint8_t)z;
}

/* Data in blocks, each with its check bytes, interleaved as the standard wants. */
static void add_check_bytes(const uint8_t *data, int version, int level, uint8_t *out) {
    int blocks = block_counts[level][version], check = check_bytes[level][version];
    int raw = raw_bits(version) / 8, shorter = blocks - raw % blocks, length = raw / blocks - check;
    uint8_t divisor[30] = {0}, root = 1;
    divisor[check - 1] = 1;
    for (int i = 0; i < check; i++) {
        for (int k = 0; k < check; k++) {
            divisor[k] = gf_times(divisor[k], root);
            if (k + 1 < check) divisor[k] ^= divisor[k + 1];
        }
        root = gf_times(root, 2);
    }
    const uint8_t *at = data;
    for (int b = 0; b < blocks; b++) {
        int size = length + (b >= shorter);
        uint8_t rest[30] = {0};
        for (int i = 0; i < size; i++) {
            uint8_t factor = at[i] ^ rest[0];
            memmove(rest, rest + 1, (size_t)check - 1);
            rest[check - 1] = 0;
            for (int k = 0; k < check; k++) rest[k] ^= gf_times(divisor[k], factor);
            /* short blocks have no byte in the last data column */
            out[i * blocks + b - (i == length ? shorter : 0)] = at[i];
        }
        for (int i = 0; i < check; i++) out[length * blocks + (blocks - shorter) + i * blocks + b] = rest[i];
        at += size;
    }
}

/* -- drawing -------------------------------------------------------------------------------------------------- */
static void set_fixed(Symbol *s, int x, int y, bool dark) {
    if (x < 0 || y < 0 || x >= s->side || y >= s->side) return;
    s->dark[y][x] = dark;
    s->fixed[y][x] = 1;
}

static void draw_square(Symbol *s, int cx, int cy, int reach, int light1, int light2) {
    for (int dy = -reach; dy <= reach; dy++)
        for (int dx = -reach; dx <= reach; dx++) {
            int ring = abs(dx) > abs(dy) ? abs(dx) : abs(dy);
            set_fixed(s, cx + dx, cy + dy, ring != light1 && ring != light2);
        }
}

static void draw_format(Symbol *s, int mask) {
    static const uint8_t level_bits[4] = {1, 0, 3, 2};
    uint32_t data = (uint32_t)(level_bits[s->level] << 3 | mask), rest = data;
    for (int i = 0; i < 10; i++) rest = (rest << 1) ^ ((rest >> 9) * 0x537);
    uint32_t bits = (data << 10 | rest) ^ 0x5412;
    int n = s->side;
    for (int i = 0; i < 15; i++) {
        bool bit = bits >> i & 1;
        if (i < 6) set_fixed(s, 8, i, bit);
        else if (i < 8) set_fixed(s, 8, i + 1, bit);
        else if (i == 8) set_fixed(s, 7, 8, bit);
        else set_fixed(s, 14 - i, 8, bit);
        if (i < 8) set_fixed(s, n - 1 - i, 8, bit);
        else set_fixed(s, 8, n - 15 + i, bit);
    }
    set_fixed(s, 8, n - 8, true);
}

static void draw_fixed(Symbol *s) {
    int n = s->side, v = s->version;
    for (int i = 0; i < n; i++) set_fixed(s, 6, i, i % 2 == 0), set_fixed(s, i, 6, i % 2 == 0);
    draw_square(s, 3, 3, 4, 2, 4);
    draw_square(s, n - 4, 3, 4, 2, 4);
    draw_square(s, 3, n - 4, 4, 2, 4);
    if (v >= 2) {
        int count = v / 7 + 2, at[7];
        int step = v == 32 ? 26 : (v * 4 + count * 2 + 1) / (count * 2 - 2) * 2;
        at[0] = 6;
        for (int i = count - 1, where = n - 7; i > 0; i--, where -= step) at[i] = where;
        for (int i = 0; i < count; i++)
            for (int k = 0; k < count; k++)
                if (!((i == 0 && k == 0) || (i == 0 && k == count - 1) || (i == count - 1 && k == 0)))
                    draw_square(s, at[i], at[k], 2, 1, 1);
    }
    if (v >= 7) {
        uint32_t rest = (uint32_t)v;
        for (int i = 0; i < 12; i++) rest = (rest << 1) ^ ((rest >> 11) * 0x1F25);
        uint32_t bits = (uint32_t)v << 12 | rest;
        for (int i = 0; i < 18; i++) {
            set_fixed(s, n - 11 + i % 3, i / 3, bits >> i & 1);
            set_fixed(s, i / 3, n - 11 + i % 3, bits >> i & 1);
        }
    }
    draw_format(s, 0);
}

static void draw_data(Symbol *s, const uint8_t *bytes, int bits) {
    int i = 0;
    for (int right = s->side - 1; right >= 1; right -= 2) {
        if (right == 6) right = 5;
        for (int step = 0; step < s->side; step++)
            for (int k = 0; k < 2; k++) {
                int x = right - k;
                int y = ((right + 1) & 2) == 0 ? s->side - 1 - step : step;
                if (s->fixed[y][x] || i >= bits) continue;
                s->dark[y][x] = bytes[i >> 3] >> (7 - (i & 7)) & 1;
                i++;
            }
    }
}

static bool mask_at(int mask, int x, int y) {
    switch (mask) {
    case 0: return (x + y) % 2 == 0;
    case 1: return y % 2 == 0;
    case 2: return x % 3 == 0;
    case 3: return (x + y) % 3 == 0;
    case 4: return (x / 3 + y / 2) % 2 == 0;
    case 5: return x * y % 2 + x * y % 3 == 0;
    case 6: return (x * y % 2 + x * y % 3) % 2 == 0;
    default: return ((x + y) % 2 + x * y % 3) % 2 == 0;
    }
}

static void apply_mask(Symbol *s, int mask) {
    for (int y = 0; y < s->side; y++)
        for (int x = 0; x < s->side; x++) s->dark[y][x] ^= !s->fixed[y][x] && mask_at(mask, x, y);
}

/* How hard a symbol is to read: runs, blocks, false finders, imbalance. */
static int penalty(const Symbol *s) {
    int n = s->side, points = 0, dark = 0;
    for (int way = 0; way < 2; way++)
        for (int a = 0; a < n; a++) {
            int run = 0;
            uint32_t last = 0; /* the last eleven modules of this line */
            for (int b = 0; b < n; b++) {
                bool on = way ? s->dark[b][a] : s->dark[a][b];
                if (b && on == (last & 1)) {
                    run++;
                    if (run == 5) points += 3;
                    else if (run > 5) points++;
                } else {
                    run = 1;
                }
                last = (last << 1 | on) & 0x7FF;
                if (b >= 10 && (last == 0x5D0 || last == 0x05D)) points += 40;
            }
        }
    for (int y = 0; y < n; y++)
        for (int x = 0; x < n; x++) {
            bool on = s->dark[y][x];
            dark += on;
            if (x + 1 < n && y + 1 < n && on == s->dark[y][x + 1] && on == s->dark[y + 1][x] &&
                on == s->dark[y + 1][x + 1])
                points += 3;
        }
    return points + (abs(dark * 20 - n * n * 10) + n * n - 1) / (n * n) * 10 - 10;
}

/* Whether the text is UTF-8 beyond ASCII, which readers misguess unless the symbol says so. */
static bool needs_utf8_mark(const uint8_t *s, int size) {
    bool beyond = false;
    for (int i = 0; i < size; i++) {
        if (s[i] < 0x80) continue;
        int more = s[i] >= 0xC2 && s[i] < 0xE0 ? 1 : s[i] >= 0xE0 && s[i] < 0xF0 ? 2 : s[i] >= 0xF0 && s[i] < 0xF5 ? 3 : -1;
        if (more < 0 || i + more >= size) return false;
        while (more-- > 0)
            if ((s[++i] & 0xC0) != 0x80) return false;
        beyond = true;
    }
    return beyond;
}

/* Make the symbol; false when the text does not fit even into the largest version. */
static bool symbol_make(Symbol *s, const uint8_t *text, int size, int level, int version_min) {
    static uint8_t modes[TEXT_MAX + 1];
    int version = version_min, class = -1, need = 0;
    int mark = needs_utf8_mark(text, size) ? 12 : 0;
    for (;; version++) {
        if (version > VERSION_MAX || size > TEXT_MAX) return false;
        if (class != version_class(version)) {
            class = version_class(version);
            need = mark + choose_modes(text, size, class, modes);
        }
        if (need <= data_bytes(version, level) * 8) break;
    }
    static Bits bits;
    int room = data_bytes(version, level);
    if (mark) bits_add(&bits, 7 << 8 | 26, 12); /* extended channel interpretation 26: UTF-8 */
    for (int i = 0, end; i < size; i = end) {
        for (end = i + 1; end < size && modes[end] == modes[i]; end++) {}
        put_segment(&bits, text + i, end - i, modes[i], class);
    }
    int left = room * 8 - bits.bits;
    bits_add(&bits, 0, left < 4 ? left : 4);
    bits.bits = (bits.bits + 7) / 8 * 8;
    for (uint32_t pad = 0xEC; bits.bits < room * 8; pad ^= 0xEC ^ 0x11) bits_add(&bits, pad, 8);

    static uint8_t words[CODEWORDS_MAX];
    add_check_bytes(bits.bytes, version, level, words);
    *s = (Symbol){.version = version, .level = level, .side = 17 + 4 * version};
    draw_fixed(s);
    draw_data(s, words, raw_bits(version) / 8 * 8);
    int best = -1;
    for (int mask = 0; mask < 8; mask++) {
        apply_mask(s, mask);
        draw_format(s, mask);
        int points = penalty(s);
        if (best < 0 || points < best) best = points, s->mask = mask;
        apply_mask(s, mask); /* a mask undoes itself */
    }
    apply_mask(s, s->mask);
    draw_format(s, s->mask);
    return true;
}

#endif
