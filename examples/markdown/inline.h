/*
 * inline.h - what stands inside a paragraph: emphasis, code, links, images, breaks.
 *
 * The delimiter-stack algorithm of CommonMark 0.31: one pass makes a list of pieces, brackets
 * and delimiter runs are matched on stacks, then the list is written out. No recursion, and no
 * step that is worse than linear in the paragraph for a hostile one.
 */
#ifndef MARKDOWN_INLINE_H
#define MARKDOWN_INLINE_H

#include "text.h"

typedef struct {
    Text label, url, title;
} Definition;

static Definition *definitions;
static int definitions_used, definitions_room;
static int *definition_slots, definition_slots_room; /* open addressing; 0 = free, else index+1 */

static bool option_no_images;

/* -- link definitions ---------------------------------------------------------------------------- */
/* Labels are compared without case and with white space collapsed. */
static Text label_normal(Arena *arena, Text t) {
    t = text_trim(t);
    char *out = arena_get(arena, (size_t)t.size + 1);
    int used = 0;
    for (int i = 0; i < t.size; i++) {
        int c = (unsigned char)t.at[i];
        if (is_white(c)) {
            if (used && out[used - 1] != ' ') out[used++] = ' ';
        } else {
            out[used++] = (char)to_lower(c);
        }
    }
    return (Text){out, used};
}

static uint32_t label_hash(Text t) {
    uint32_t h = 2166136261u;
    for (int i = 0; i < t.size; i++) h = (h ^ (unsigned char)t.at[i]) * 16777619u;
    return h;
}

static int *definition_slot(Text label) {
    uint32_t at = label_hash(label) & (uint32_t)(definition_slots_room - 1);
    while (definition_slots[at]) {
        Text have = definitions[definition_slots[at] - 1].label;
        if (have.size == label.size && !memcmp(have.at, label.at, (size_t)label.size)) break;
        at = (at + 1) & (uint32_t)(definition_slots_room - 1);
    }
    return &definition_slots[at];
}

static Definition *definition_find(Arena *arena, Text label) {
    if (!definitions_used || label.size > 999) return NULL;
    label = label_normal(arena, label);
    if (!label.size) return NULL;
    int slot = *definition_slot(label);
    return slot ? &definitions[slot - 1] : NULL;
}

static void definition_add(Text label, Text url, Text title) {
    label = label_normal(&tree_memory, label);
    if (!label.size) return;
    if (definitions_used * 2 >= definition_slots_room) {
        free(definition_slots);
        definition_slots_room = definition_slots_room ? definition_slots_room * 2 : 64;
        size_t bytes = sizeof(int) * (size_t)definition_slots_room;
        definition_slots = memset(guest_alloc(bytes), 0, bytes);
        for (int i = 0; i < definitions_used; i++) *definition_slot(definitions[i].label) = i + 1;
    }
    int *slot = definition_slot(label);
    if (*slot) return; /* the first one wins */
    if (definitions_used == definitions_room) {
        definitions_room = definitions_room ? definitions_room * 2 : 32;
        definitions = guest_resize(definitions, sizeof *definitions * (size_t)definitions_room);
    }
    definitions[definitions_used++] = (Definition){label, url, title};
    *slot = definitions_used;
}

/* -- URLs ------------------------------------------------------------------------------------------ */
/*
 * Only what a reader can follow safely: web, mail, phone, and what has no scheme at all. Browsers
 * drop control characters inside a scheme, so those are dropped before it is looked at.
 */
static bool url_allowed(Text url, bool image) {
    static const char *const schemes[] = {"http", "https", "mailto", "tel"};
    char scheme[8];
    int used = 0;
    for (int i = 0; i < url.size; i++) {
        unsigned char c = (unsigned char)url.at[i];
        if (c <= ' ' || c == 0x7F) continue;
        if (c == '/' || c == '?' || c == '#') return true;
        if (c == ':') {
            for (int k = 0; k < (image ? 2 : 4); k++)
                if ((int)strlen(schemes[k]) == used && !memcmp(schemes[k], scheme, (size_t)used))
                    return true;
            return false;
        }
        if (used < (int)sizeof scheme) scheme[used++] = (char)to_lower(c);
    }
    return true; /* no scheme: relative */
}

/* `<...>` or bare; returns the bytes used, or -1. */
static int scan_destination(Text t, Text *url) {
    int i = 0;
    if (t.size && t.at[0] == '<') {
        for (i = 1; i < t.size && t.at[i] != '>'; i++) {
            if (t.at[i] == '<' || t.at[i] == '\n') return -1;
            if (t.at[i] == '\\' && i + 1 < t.size) i++;
        }
        if (i >= t.size) return -1;
        *url = (Text){t.at + 1, i - 1};
        return i + 1;
    }
    int depth = 0;
    for (; i < t.size; i++) {
        unsigned char c = (unsigned char)t.at[i];
        if (c <= ' ' || c == 0x7F) break;
        if (c == '\\' && i + 1 < t.size && is_punct((unsigned char)t.at[i + 1])) i++;
        else if (c == '(' && ++depth > 32) return -1;
        else if (c == ')' && --depth < 0) break;
    }
    if (depth > 0) return -1;
    *url = (Text){t.at, i};
    return i;
}

static int scan_title(Text t, Text *title) {
    if (!t.size) return -1;
    char open = t.at[0], close = open == '(' ? ')' : open;
    if (open != '"' && open != '\'' && open != '(') return -1;
    for (int i = 1; i < t.size; i++) {
        if (t.at[i] == '\\' && i + 1 < t.size) {
            i++;
        } else if (t.at[i] == close) {
            *title = (Text){t.at + 1, i - 1};
            return i + 1;
        } else if (t.at[i] == '(' && open == '(') {
            return -1;
        }
    }
    return -1;
}

static int skip_white(Text t, int i) {
    while (i < t.size && is_white((unsigned char)t.at[i])) i++;
    return i;
}

static Text text_from(Text t, int i) { return (Text){t.at + i, t.size - i}; }

/* `[label]` at the start of `t`: bytes used, or -1. */
static int scan_label(Text t, Text *label) {
    if (!t.size || t.at[0] != '[') return -1;
    for (int i = 1; i < t.size && i < 1001; i++) {
        if (t.at[i] == '\\' && i + 1 < t.size) {
            i++;
        } else if (t.at[i] == '[') {
            return -1;
        } else if (t.at[i] == ']') {
            Text inside = {t.at + 1, i - 1};
            if (!text_trim(inside).size) return -1;
            *label = inside;
            return i + 1;
        }
    }
    return -1;
}

/* -- pieces ---------------------------------------------------------------------------------------- */
typedef enum {
    PIECE_TEXT,
    PIECE_RAW, /* an entity, written as it is */
    PIECE_CODE,
    PIECE_BREAK,
    PIECE_RUN,     /* delimiters not (yet) matched: text */
    PIECE_BRACKET, /* '[' or '![' not (yet) matched: text */
    PIECE_TAG,     /* <em>, </strong>, ... */
    PIECE_LINK,
    PIECE_LINK_END,
    PIECE_IMAGE,
    PIECE_IMAGE_END,
} PieceKind;

typedef struct {
    PieceKind kind;
    int next; /* pieces form a list, since emphasis inserts tags */
    Text text; /* of a link or image: `size` is the number of its target */
} Piece;

typedef struct {
    Text url, title;
} Target;

typedef struct {
    int piece, count, original;
    char mark;
    bool opens, closes;
    int before, after; /* neighbours on the delimiter stack */
} Run;

typedef struct {
    int piece, at; /* offset behind the bracket */
    int run_below; /* delimiter stack top when it was pushed */
    bool image;
} Bracket;

typedef struct {
    Arena *arena;
    Text in;
    Piece *pieces;
    int pieces_used, pieces_room, last;
    Target *targets;
    int targets_used, targets_room;
    Run *runs;
    int runs_used, runs_room, run_top;
    Bracket *brackets;
    int brackets_used, brackets_room, dead_below; /* '[' under this cannot become links */
    bool no_code[81];                             /* no closing run of n backticks ahead */
} Inline;

#define GROW(list, used, room)                                            \
    do {                                                                  \
        if ((used) == (room)) {                                           \
            (room) = (room) ? (room)*2 : 64;                              \
            (list) = guest_resize((list), sizeof *(list) * (size_t)(room)); \
        }                                                                 \
    } while (0)

static int piece_new(Inline *s, PieceKind kind, Text text) {
    GROW(s->pieces, s->pieces_used, s->pieces_room);
    s->pieces[s->pieces_used] = (Piece){kind, -1, text};
    return s->pieces_used++;
}

static int piece_add(Inline *s, PieceKind kind, Text text) {
    int made = piece_new(s, kind, text);
    if (s->last >= 0) s->pieces[s->last].next = made;
    return s->last = made;
}

static int piece_insert(Inline *s, int after, PieceKind kind, const char *tag) {
    int made = piece_new(s, kind, (Text){tag, (int)strlen(tag)});
    s->pieces[made].next = s->pieces[after].next;
    s->pieces[after].next = made;
    if (s->last == after) s->last = made;
    return made;
}

static Text target_add(Inline *s, Text url, Text title) {
    GROW(s->targets, s->targets_used, s->targets_room);
    s->targets[s->targets_used] = (Target){url, title};
    return (Text){NULL, s->targets_used++};
}

/* -- emphasis ---------------------------------------------------------------------------------------- */
/* Kind of character for the flanking rules: 0 white space, 1 punctuation, 2 anything else. */
static int char_class(Text t, int i, bool before) {
    if (i < 0 || i >= t.size) return 0;
    unsigned char c = (unsigned char)t.at[i];
    if (c < 0x80) return is_white(c) ? 0 : is_punct(c) ? 1 : 2;
    if (before)
        while (i > 0 && (t.at[i] & 0xC0) == 0x80) i--;
    const unsigned char *s = (const unsigned char *)t.at + i;
    if (s[0] == 0xC2 && s[1] == 0xA0) return 0;              /* no-break space */
    if (s[0] == 0xC2 && s[1] >= 0xA1 && s[1] <= 0xBF) return 1; /* Latin-1 signs */
    if (s[0] == 0xE2 && (s[1] == 0x82 || s[1] == 0x83)) return 1; /* currencies */
    if (s[0] == 0xE2 && s[1] == 0x80) return s[2] <= 0x8A || s[2] == 0xAF ? 0 : 1;
    if (s[0] == 0xE3 && s[1] == 0x80) return s[2] == 0x80 ? 0 : s[2] <= 0xBF ? 1 : 2;
    return 2;
}

static void run_remove(Inline *s, int run) {
    Run *r = &s->runs[run];
    if (r->before >= 0) s->runs[r->before].after = r->after;
    if (r->after >= 0) s->runs[r->after].before = r->before;
    if (s->run_top == run) s->run_top = r->before;
}

static void emphasis_resolve(Inline *s, int below) {
    /* below which no opener was found, for each kind of closer: keeps hostile input linear */
    int bottom[3][2][3];
    for (int i = 0; i < 18; i++) ((int *)bottom)[i] = below;
    int closer = -1;
    for (int r = s->run_top; r >= 0 && r != below; r = s->runs[r].before) closer = r;
    while (closer >= 0) {
        Run *c = &s->runs[closer];
        if (!c->closes) {
            closer = c->after;
            continue;
        }
        int kind = c->mark == '*' ? 0 : c->mark == '_' ? 1 : 2;
        int *floor = &bottom[kind][c->opens][c->original % 3];
        int opener = c->before;
        bool found = false;
        while (opener > below && opener > *floor) { /* runs are numbered in order */
            Run *o = &s->runs[opener];
            bool odd = kind != 2 && (c->opens || o->closes) && (o->original + c->original) % 3 == 0 &&
                       (o->original % 3 != 0 || c->original % 3 != 0);
            if (o->mark == c->mark && o->opens && !odd && (kind != 2 || o->count == c->count)) {
                found = true;
                break;
            }
            opener = o->before;
        }
        if (!found) {
            *floor = c->before;
            int next = c->after;
            if (!c->opens) run_remove(s, closer);
            closer = next;
            continue;
        }
        Run *o = &s->runs[opener];
        int take = kind == 2 ? o->count : o->count >= 2 && c->count >= 2 ? 2 : 1;
        while (c->before != opener) run_remove(s, c->before);
        o->count -= take;
        c->count -= take;
        s->pieces[o->piece].text.size -= take;
        s->pieces[c->piece].text.size -= take;
        s->pieces[c->piece].text.at += take;
        piece_insert(s, o->piece, PIECE_TAG, kind == 2 ? "<del>" : take == 2 ? "<strong>" : "<em>");
        /* the closing tag goes in front of what is left of the closer: its piece becomes the tag
           and the rest moves behind it */
        Piece rest = s->pieces[c->piece];
        const char *tag = kind == 2 ? "</del>" : take == 2 ? "</strong>" : "</em>";
        int moved = piece_insert(s, c->piece, PIECE_RUN, "");
        s->pieces[moved].text = rest.text;
        s->pieces[c->piece].kind = PIECE_TAG;
        s->pieces[c->piece].text = (Text){tag, (int)strlen(tag)};
        c->piece = moved;
        if (!o->count) run_remove(s, opener);
        if (!c->count) {
            int next = c->after;
            run_remove(s, closer);
            closer = next;
        }
    }
    while (s->run_top >= 0 && s->run_top != below) run_remove(s, s->run_top);
}

static int run_push(Inline *s, int i) {
    Text in = s->in;
    char mark = in.at[i];
    int end = i;
    while (end < in.size && in.at[end] == mark) end++;
    int n = end - i, was = char_class(in, i - 1, true), will = char_class(in, end, false);
    int piece = piece_add(s, PIECE_RUN, (Text){in.at + i, n});
    if (mark == '~' && n > 2) return end;
    bool left = will != 0 && (will != 1 || was != 2);
    bool right = was != 0 && (was != 1 || will != 2);
    bool opens = mark == '_' ? left && (!right || was == 1) : left;
    bool closes = mark == '_' ? right && (!left || will == 1) : right;
    if (!opens && !closes) return end;
    GROW(s->runs, s->runs_used, s->runs_room);
    if (s->run_top >= 0) s->runs[s->run_top].after = s->runs_used;
    s->runs[s->runs_used] = (Run){piece, n, n, mark, opens, closes, s->run_top, -1};
    s->run_top = s->runs_used++;
    return end;
}

/* -- code spans, autolinks ----------------------------------------------------------------------------- */
static int code_span(Inline *s, int i) {
    Text in = s->in;
    int n = 0;
    while (i + n < in.size && in.at[i + n] == '`') n++;
    if (n <= 80 && !s->no_code[n]) {
        for (int k = i + n; k < in.size;) {
            const char *hit = memchr(in.at + k, '`', (size_t)(in.size - k));
            if (!hit) break;
            int from = k = (int)(hit - in.at);
            while (k < in.size && in.at[k] == '`') k++;
            if (k - from != n) continue;
            Text code = {in.at + i + n, from - i - n};
            bool blank = true;
            for (int j = 0; j < code.size && blank; j++)
                blank = code.at[j] == ' ' || code.at[j] == '\n';
            if (!blank && code.size >= 2 && (code.at[0] == ' ' || code.at[0] == '\n') &&
                (code.at[code.size - 1] == ' ' || code.at[code.size - 1] == '\n'))
                code.at++, code.size -= 2;
            piece_add(s, PIECE_CODE, code);
            return k;
        }
        s->no_code[n] = true;
    }
    piece_add(s, PIECE_TEXT, (Text){in.at + i, n});
    return i + n;
}

static void link_pieces(Inline *s, Text url, Text title, Text shown) {
    piece_add(s, PIECE_LINK, target_add(s, url, title));
    piece_add(s, PIECE_TEXT, shown);
    piece_add(s, PIECE_LINK_END, (Text){0});
}

static Text text_join(Arena *arena, const char *prefix, Text t) {
    size_t n = strlen(prefix);
    char *out = arena_get(arena, n + (size_t)t.size);
    memcpy(out, prefix, n);
    memcpy(out + n, t.at, (size_t)t.size);
    return (Text){out, (int)n + t.size};
}

/* `<https://...>` and `<me@example.org>`. Anything else behind a '<' is text, escaped. */
static int angle_link(Inline *s, int i) {
    Text in = s->in;
    int end = i + 1, at = -1, colon = -1;
    for (; end < in.size && in.at[end] != '>'; end++) {
        unsigned char c = (unsigned char)in.at[end];
        if (c <= ' ' || c == '<' || end - i > 2048) return i;
        if (c == '@' && at < 0) at = end;
        if (c == ':' && colon < 0) colon = end;
    }
    if (end >= in.size) return i;
    Text inside = {in.at + i + 1, end - i - 1};
    if (colon > i + 2 && is_alpha((unsigned char)inside.at[0])) {
        if (!url_allowed(inside, false)) return i;
        link_pieces(s, inside, (Text){0}, inside);
        return end + 1;
    }
    if (colon < 0 && at > i + 1 && at < end - 1 && !memchr(in.at + at + 1, '@', (size_t)(end - at - 1)) &&
        !memchr(inside.at, '\\', (size_t)inside.size)) {
        link_pieces(s, text_join(s->arena, "mailto:", inside), (Text){0}, inside);
        return end + 1;
    }
    return i;
}

/* A bare `https://...` or `www....` at the start of a word. */
static int bare_link(Inline *s, int i) {
    Text rest = text_from(s->in, i);
    bool www = text_starts(rest, "www.");
    int n = www ? 4 : text_starts(rest, "https://") ? 8 : text_starts(rest, "http://") ? 7 : 0;
    if (!n || n >= rest.size || !is_alnum((unsigned char)rest.at[n])) return i;
    if (i > 0 && !is_white((unsigned char)s->in.at[i - 1]) && !strchr("*_~([", s->in.at[i - 1])) return i;
    int open = 0, close = 0;
    for (; n < rest.size; n++) {
        unsigned char c = (unsigned char)rest.at[n];
        if (c <= ' ' || c == '<' || c == '`' || c == ']' || c == '[') break;
        open += c == '(';
        close += c == ')';
    }
    for (;;) { /* punctuation at the end belongs to the sentence */
        char last = rest.at[n - 1];
        if (strchr("?!.,:;*_~'\"", last)) n--;
        else if (last == ')' && close > open) n--, close--;
        else break;
    }
    Text shown = {rest.at, n};
    link_pieces(s, www ? text_join(s->arena, "http://", shown) : shown, (Text){0}, shown);
    return i + n;
}

/* -- links and images ------------------------------------------------------------------------------------- */
/* What follows `]`: `(url "title")`, `[label]`, `[]` or nothing. Returns the new offset, or -1. */
static int link_tail(Inline *s, const Bracket *b, int i, Text *url, Text *title) {
    Text in = s->in;
    *title = (Text){0};
    if (i < in.size && in.at[i] == '(') {
        int k = skip_white(in, i + 1);
        int n = scan_destination(text_from(in, k), url);
        if (n >= 0) {
            k += n;
            int gap = skip_white(in, k);
            int t = gap > k ? scan_title(text_from(in, gap), title) : -1;
            if (t > 0) gap = skip_white(in, gap + t);
            if (gap < in.size && in.at[gap] == ')') {
                *url = text_unescape(s->arena, *url);
                *title = text_unescape(s->arena, *title);
                return gap + 1;
            }
        }
    }
    Text label = {in.at + b->at, i - 1 - b->at};
    int end = i;
    int n = scan_label(text_from(in, i), &label);
    if (n > 0) end = i + n;
    else if (i + 1 < in.size && in.at[i] == '[' && in.at[i + 1] == ']') end = i + 2;
    Definition *found = definition_find(s->arena, label);
    if (!found) return -1;
    *url = found->url;
    *title = found->title;
    return end;
}

static int bracket_close(Inline *s, int i) {
    if (!s->brackets_used) {
        piece_add(s, PIECE_TEXT, (Text){s->in.at + i, 1});
        return i + 1;
    }
    Bracket b = s->brackets[--s->brackets_used];
    bool dead = !b.image && s->brackets_used < s->dead_below;
    if (s->dead_below > s->brackets_used) s->dead_below = s->brackets_used;
    Text url, title;
    int end = dead ? -1 : link_tail(s, &b, i + 1, &url, &title);
    if (end < 0) {
        piece_add(s, PIECE_TEXT, (Text){s->in.at + i, 1});
        return i + 1;
    }
    emphasis_resolve(s, b.run_below);
    Piece *open = &s->pieces[b.piece];
    bool image = b.image && !option_no_images;
    if (!url_allowed(url, b.image) || (b.image && option_no_images)) {
        open->text.size = 0; /* the words stay, the link goes */
        return end;
    }
    open->kind = image ? PIECE_IMAGE : PIECE_LINK;
    Text target = open->text = target_add(s, url, title);
    piece_add(s, image ? PIECE_IMAGE_END : PIECE_LINK_END, target);
    if (!b.image) s->dead_below = s->brackets_used; /* no links inside links */
    return end;
}

/* -- the pass ------------------------------------------------------------------------------------------------ */
static bool is_special(unsigned char c) {
    return c == '\\' || c == '`' || c == '*' || c == '_' || c == '~' || c == '[' || c == ']' ||
           c == '!' || c == '<' || c == '&' || c == '\n' || (c | 32) == 'h' || (c | 32) == 'w';
}

static void inline_scan(Inline *s) {
    Text in = s->in;
    for (int i = 0; i < in.size;) {
        unsigned char c = (unsigned char)in.at[i];
        int next = i;
        if (c == '\\' && i + 1 < in.size && in.at[i + 1] == '\n') {
            piece_add(s, PIECE_BREAK, (Text){0});
            next = i + 2;
        } else if (c == '\\' && i + 1 < in.size && is_punct((unsigned char)in.at[i + 1])) {
            piece_add(s, PIECE_TEXT, (Text){in.at + i + 1, 1});
            next = i + 2;
        } else if (c == '`') {
            next = code_span(s, i);
        } else if (c == '*' || c == '_' || c == '~') {
            next = run_push(s, i);
        } else if (c == '[' || (c == '!' && i + 1 < in.size && in.at[i + 1] == '[')) {
            next = i + (c == '!' ? 2 : 1);
            int piece = piece_add(s, PIECE_BRACKET, (Text){in.at + i, next - i});
            GROW(s->brackets, s->brackets_used, s->brackets_room);
            s->brackets[s->brackets_used++] = (Bracket){piece, next, s->run_top, c == '!'};
        } else if (c == ']') {
            next = bracket_close(s, i);
        } else if (c == '<') {
            next = angle_link(s, i);
        } else if (c == '&') {
            int n = entity_length(text_from(in, i));
            if (n) piece_add(s, PIECE_RAW, (Text){in.at + i, n});
            next = i + n;
        } else if ((c | 32) == 'h' || (c | 32) == 'w') {
            next = bare_link(s, i);
        } else if (c == '\n') {
            piece_add(s, PIECE_TEXT, (Text){in.at + i, 1});
            next = i + 1;
        }
        if (next > i) {
            i = next;
            continue;
        }
        int end = i + 1;
        while (end < in.size && !is_special((unsigned char)in.at[end])) end++;
        int words = end;
        if (end < in.size && in.at[end] == '\n') { /* two spaces at a line's end are a break */
            while (words > i && in.at[words - 1] == ' ') words--;
            if (words < end) piece_add(s, PIECE_TEXT, (Text){in.at + i, words - i});
            if (end - words >= 2) piece_add(s, PIECE_BREAK, (Text){0}), end++;
            if (words < end) {
                i = end;
                continue;
            }
        }
        piece_add(s, PIECE_TEXT, (Text){in.at + i, end - i});
        i = end;
    }
}

static void put_title(Text title) {
    if (!title.size) return;
    guest_puts(" title=\"");
    put_escaped(title);
    guest_puts("\"");
}

static void inline_put(const Inline *s) {
    int images = 0; /* inside alt="" only words may stand */
    for (int i = s->pieces_used ? 0 : -1; i >= 0; i = s->pieces[i].next) {
        const Piece *p = &s->pieces[i];
        switch (p->kind) {
        case PIECE_TEXT:
        case PIECE_RUN:
        case PIECE_BRACKET: put_escaped(p->text); break;
        case PIECE_RAW: guest_put(p->text.at, (size_t)p->text.size); break;
        case PIECE_TAG:
            if (!images) guest_put(p->text.at, (size_t)p->text.size);
            break;
        case PIECE_BREAK: guest_puts(images ? " " : "<br>\n"); break;
        case PIECE_CODE:
            if (!images) guest_puts("<code>");
            for (int k = 0, from = 0; k <= p->text.size; k++)
                if (k == p->text.size || p->text.at[k] == '\n') {
                    put_escaped((Text){p->text.at + from, k - from});
                    if (k < p->text.size) guest_puts(" ");
                    from = k + 1;
                }
            if (!images) guest_puts("</code>");
            break;
        case PIECE_LINK:
            if (images) break;
            guest_puts("<a href=\"");
            put_url(s->targets[p->text.size].url);
            guest_puts("\"");
            put_title(s->targets[p->text.size].title);
            guest_puts(" rel=\"nofollow noopener\">");
            break;
        case PIECE_LINK_END:
            if (!images) guest_puts("</a>");
            break;
        case PIECE_IMAGE:
            if (images++) break;
            guest_puts("<img src=\"");
            put_url(s->targets[p->text.size].url);
            guest_puts("\" alt=\"");
            break;
        case PIECE_IMAGE_END:
            if (--images) break;
            guest_puts("\"");
            put_title(s->targets[p->text.size].title);
            guest_puts(">");
            break;
        }
    }
}

/* Write `text` with its inline markup as HTML. */
static void inline_render(Text text) {
    static Arena memory;
    static Inline s; /* its lists are kept from one paragraph to the next */
    arena_reset(&memory);
    s.arena = &memory;
    s.in = text;
    s.pieces_used = s.targets_used = s.runs_used = s.brackets_used = s.dead_below = 0;
    s.last = s.run_top = -1;
    memset(s.no_code, 0, sizeof s.no_code);
    inline_scan(&s);
    emphasis_resolve(&s, -1);
    inline_put(&s);
}

#endif
