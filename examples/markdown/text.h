/* text.h - memory, characters and escaped output for the Markdown agent. */
#ifndef MARKDOWN_TEXT_H
#define MARKDOWN_TEXT_H

#include <stdbool.h>
#include "guest.h"

/* -- memory: one run, then the module is gone, so nothing is freed singly --------------------- */
typedef struct Chunk Chunk;
struct Chunk {
    Chunk *before;
    size_t size, used;
};
typedef struct {
    Chunk *last;
} Arena;

static void *arena_get(Arena *arena, size_t size) {
    size = (size + 7) & ~(size_t)7;
    if (!arena->last || arena->last->size - arena->last->used < size) {
        size_t room = size > 65536 ? size : 65536;
        Chunk *chunk = guest_alloc(sizeof(Chunk) + room);
        *chunk = (Chunk){arena->last, room, 0};
        arena->last = chunk;
    }
    void *at = (char *)(arena->last + 1) + arena->last->used;
    arena->last->used += size;
    return at;
}

/* Forget everything but keep the newest chunk: what one paragraph used serves the next. */
static void arena_reset(Arena *arena) {
    if (!arena->last) return;
    while (arena->last->before) {
        Chunk *old = arena->last->before;
        arena->last->before = old->before;
        free(old);
    }
    arena->last->used = 0;
}

static Arena tree_memory; /* blocks, lines, link definitions: lives to the end */

/* -- a stretch of text ------------------------------------------------------------------------ */
typedef struct {
    const char *at;
    int size;
} Text;

static inline bool is_space(int c) { return c == ' ' || c == '\t'; }
static inline bool is_white(int c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
static inline bool is_digit(int c) { return c >= '0' && c <= '9'; }
static inline bool is_alpha(int c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; }
static inline bool is_alnum(int c) { return is_alpha(c) || is_digit(c); }
static inline int to_lower(int c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; }
static inline bool is_punct(int c) {
    return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) ||
           (c >= 123 && c <= 126);
}

static Text text_trim(Text t) {
    while (t.size > 0 && is_white((unsigned char)t.at[0])) t.at++, t.size--;
    while (t.size > 0 && is_white((unsigned char)t.at[t.size - 1])) t.size--;
    return t;
}

static bool text_starts(Text t, const char *prefix) {
    int n = (int)strlen(prefix);
    if (t.size < n) return false;
    for (int i = 0; i < n; i++)
        if (to_lower((unsigned char)t.at[i]) != prefix[i]) return false;
    return true;
}

/* -- UTF-8 --------------------------------------------------------------------------------------- */
/* Length of the valid UTF-8 sequence at `s` (of `n` bytes), or 0; no overlongs, no surrogates. */
static int utf8_length(const unsigned char *s, size_t n) {
    unsigned char c = s[0];
    if (c < 0x80) return 1;
    if (c >= 0xC2 && c <= 0xDF) return n >= 2 && (s[1] & 0xC0) == 0x80 ? 2 : 0;
    if (c >= 0xE0 && c <= 0xEF) {
        if (n < 3 || (s[1] & 0xC0) != 0x80 || (s[2] & 0xC0) != 0x80) return 0;
        if (c == 0xE0 && s[1] < 0xA0) return 0;
        if (c == 0xED && s[1] > 0x9F) return 0;
        return 3;
    }
    if (c >= 0xF0 && c <= 0xF4) {
        if (n < 4 || (s[1] & 0xC0) != 0x80 || (s[2] & 0xC0) != 0x80 || (s[3] & 0xC0) != 0x80)
            return 0;
        if (c == 0xF0 && s[1] < 0x90) return 0;
        if (c == 0xF4 && s[1] > 0x8F) return 0;
        return 4;
    }
    return 0;
}

static int utf8_encode(uint32_t code, char out[4]) {
    if (code == 0 || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) code = 0xFFFD;
    if (code < 0x80) return out[0] = (char)code, 1;
    if (code < 0x800) {
        out[0] = (char)(0xC0 | code >> 6);
        out[1] = (char)(0x80 | (code & 63));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xE0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 63));
        out[2] = (char)(0x80 | (code & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 63));
    out[2] = (char)(0x80 | (code >> 6 & 63));
    out[3] = (char)(0x80 | (code & 63));
    return 4;
}

/*
 * Make the input what the rest relies on: valid UTF-8, no NUL, lines that end in '\n'.
 * A bad byte becomes U+FFFD, so the output is valid UTF-8 whatever came in.
 */
static Text text_clean(const unsigned char *in, size_t size) {
    char *out = guest_alloc(size * 3 + 2);
    size_t used = 0, i = 0;
    if (size >= 3 && !memcmp(in, "\xEF\xBB\xBF", 3)) i = 3;
    while (i < size) {
        unsigned char c = in[i];
        if (c == '\r') {
            out[used++] = '\n';
            i += i + 1 < size && in[i + 1] == '\n' ? 2 : 1;
        } else if (c && c < 0x80) {
            out[used++] = (char)c;
            i++;
        } else {
            int n = c ? utf8_length(in + i, size - i) : 0;
            if (n) {
                memcpy(out + used, in + i, (size_t)n);
                used += (size_t)n;
                i += (size_t)n;
            } else {
                memcpy(out + used, "\xEF\xBF\xBD", 3);
                used += 3;
                i++;
            }
        }
    }
    if (used && out[used - 1] != '\n') out[used++] = '\n';
    return (Text){out, (int)used};
}

/* -- escaped output ----------------------------------------------------------------------------- */
static void put_escaped(Text t) {
    int from = 0;
    for (int i = 0; i < t.size; i++) {
        const char *as = NULL;
        switch (t.at[i]) {
        case '&': as = "&amp;"; break;
        case '<': as = "&lt;"; break;
        case '>': as = "&gt;"; break;
        case '"': as = "&quot;"; break;
        default: continue;
        }
        guest_put(t.at + from, (size_t)(i - from));
        guest_puts(as);
        from = i + 1;
    }
    guest_put(t.at + from, (size_t)(t.size - from));
}

/* A URL into an attribute: whatever may not stand in a URL is percent-encoded, then escaped. */
static void put_url(Text url) {
    static const char hex[] = "0123456789ABCDEF";
    for (int i = 0; i < url.size; i++) {
        unsigned char c = (unsigned char)url.at[i];
        if (c == '&') {
            guest_puts("&amp;");
        } else if (c == '\'') {
            guest_puts("&#39;");
        } else if (is_alnum(c) || (c < 0x80 && strchr("-._~:/?#@!$()*+,;=%", c))) {
            guest_put(&url.at[i], 1);
        } else {
            char as[3] = {'%', hex[c >> 4], hex[c & 15]};
            guest_put(as, 3);
        }
    }
}

/* -- entities: `&amp;` `&#39;` `&#x27;`; returns the length of the reference at `t`, or 0 ------- */
static int entity_length(Text t) {
    int i = 1;
    if (t.size < 3) return 0;
    if (t.at[1] == '#') {
        bool hex = t.size > 2 && (t.at[2] | 32) == 'x';
        i = hex ? 3 : 2;
        int from = i;
        while (i < t.size && i - from < 8 &&
               (is_digit(t.at[i]) || (hex && (t.at[i] | 32) >= 'a' && (t.at[i] | 32) <= 'f')))
            i++;
        if (i == from) return 0;
    } else {
        if (!is_alpha(t.at[1])) return 0;
        while (i < t.size && i < 33 && is_alnum(t.at[i])) i++;
        if (i < 3) return 0;
    }
    return i < t.size && t.at[i] == ';' ? i + 1 : 0;
}

/* Decode what can be decoded without the list of 2,231 names; 0 when it is a name left as it is. */
static int entity_decode(Text t, int length, char out[4]) {
    static const struct {
        const char *name;
        char as;
    } known[] = {{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&colon;", ':'}};
    if (t.at[1] == '#') {
        uint32_t code = 0;
        bool hex = (t.at[2] | 32) == 'x';
        for (int i = hex ? 3 : 2; i < length - 1; i++) {
            int c = t.at[i] | 32;
            int digit = is_digit(t.at[i]) ? t.at[i] - '0' : c - 'a' + 10;
            code = code > 0x110000 ? code : code * (hex ? 16 : 10) + (uint32_t)digit;
        }
        return utf8_encode(code, out);
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((int)strlen(known[i].name) == length && !memcmp(known[i].name, t.at, (size_t)length))
            return out[0] = known[i].as, 1;
    return 0;
}

/* Backslash escapes and entities resolved: what a destination, title or info string means. */
static Text text_unescape(Arena *arena, Text t) {
    char *out = arena_get(arena, (size_t)t.size + 4);
    int used = 0;
    for (int i = 0; i < t.size;) {
        if (t.at[i] == '\\' && i + 1 < t.size && is_punct((unsigned char)t.at[i + 1])) {
            out[used++] = t.at[i + 1];
            i += 2;
            continue;
        }
        if (t.at[i] == '&') {
            Text rest = {t.at + i, t.size - i};
            int length = entity_length(rest);
            int got = length ? entity_decode(rest, length, out + used) : 0;
            if (got) {
                used += got;
                i += length;
                continue;
            }
        }
        out[used++] = t.at[i++];
    }
    return (Text){out, used};
}

#endif
