/*
 * block.h - the structure of a document: paragraphs, headings, lists, quotes, code, tables.
 *
 * A container (quote, list item) is parsed by stripping its prefix from each of its lines and
 * parsing what is left as a document of its own; NESTING_MAX bounds that.
 */
#ifndef MARKDOWN_BLOCK_H
#define MARKDOWN_BLOCK_H

#include "inline.h"

enum { NESTING_MAX = 48, TABLE_COLUMNS_MAX = 128 };

typedef struct {
    const char *at;
    int size;
    int column; /* where `at` stands, for tab stops */
    int pad;    /* columns of a tab that was split */
    bool lazy;  /* continues a paragraph without the container's prefix */
} Line;

typedef enum {
    BLOCK_PARAGRAPH,
    BLOCK_HEADING,
    BLOCK_RULE,
    BLOCK_CODE,
    BLOCK_QUOTE,
    BLOCK_LIST,
    BLOCK_ITEM,
    BLOCK_TABLE,
} BlockKind;

typedef struct Block Block;
struct Block {
    BlockKind kind;
    Block *child, *next;
    Text text;   /* paragraph, heading */
    Text info;   /* code: its language */
    Line *lines; /* code, table */
    int count;   /* lines */
    int level;   /* heading 1..6; list: the first number */
    bool ordered, loose;
};

typedef struct {
    Block *first, *last;
    bool gap;     /* a blank line stood between two of them */
    bool pending; /* a blank line stood behind the last one */
} Blocks;

static Block *block_add(Blocks *to, BlockKind kind) {
    Block *made = memset(arena_get(&tree_memory, sizeof(Block)), 0, sizeof(Block));
    made->kind = kind;
    if (to->last) {
        to->last->next = made;
        to->gap |= to->pending;
    } else {
        to->first = made;
    }
    to->pending = false;
    return to->last = made;
}

/* -- lines ---------------------------------------------------------------------------------------- */
static int tab_width(int column) { return 4 - column % 4; }

static bool line_blank(const Line *l) {
    for (int i = 0; i < l->size; i++)
        if (!is_space(l->at[i])) return false;
    return true;
}

static int line_indent(const Line *l) {
    int columns = l->pad;
    for (int i = 0; i < l->size && is_space(l->at[i]); i++)
        columns += l->at[i] == '\t' ? tab_width(l->column + columns - l->pad) : 1;
    return columns;
}

/* Without its first `columns` columns of white space. */
static Line line_strip(Line l, int columns) {
    while (columns > 0) {
        if (l.pad > 0) {
            int take = l.pad < columns ? l.pad : columns;
            l.pad -= take;
            columns -= take;
        } else if (l.size && l.at[0] == '\t') {
            l.pad = tab_width(l.column);
            l.column += l.pad;
            l.at++, l.size--;
        } else if (l.size && l.at[0] == ' ') {
            l.at++, l.size--, l.column++, columns--;
        } else {
            break;
        }
    }
    return l;
}

static Line line_skip(Line l, int bytes) {
    l.at += bytes;
    l.size -= bytes;
    l.column += bytes;
    return l;
}

static Text line_text(const Line *l) { return text_trim((Text){l->at, l->size}); }

/* -- what a line starts --------------------------------------------------------------------------------- */
static bool starts_rule(const Line *l) {
    Text t = line_text(l);
    int n = 0;
    if (!t.size || !strchr("*-_", t.at[0])) return false;
    for (int i = 0; i < t.size; i++)
        if (t.at[i] == t.at[0]) n++;
        else if (!is_space(t.at[i])) return false;
    return n >= 3;
}

static int starts_heading(const Line *l) {
    Text t = line_text(l);
    int n = 0;
    while (n < t.size && t.at[n] == '#') n++;
    return n >= 1 && n <= 6 && (n == t.size || is_space(t.at[n])) ? n : 0;
}

/* Length of the opening fence, or 0. */
static int starts_fence(const Line *l) {
    Text t = line_text(l);
    int n = 0;
    if (!t.size || (t.at[0] != '`' && t.at[0] != '~')) return 0;
    while (n < t.size && t.at[n] == t.at[0]) n++;
    if (n < 3 || (t.at[0] == '`' && memchr(t.at + n, '`', (size_t)(t.size - n)))) return 0;
    return n;
}

static bool ends_fence(const Line *l, char mark, int length) {
    Text t = line_text(l);
    if (line_indent(l) >= 4 || t.size < length) return false;
    for (int i = 0; i < t.size; i++)
        if (t.at[i] != mark) return false;
    return true;
}

static bool starts_quote(const Line *l) {
    Text t = line_text(l);
    return t.size && t.at[0] == '>';
}

typedef struct {
    char mark; /* - + * . ) */
    int number;
    int bytes;  /* of the marker */
    bool empty; /* nothing behind it */
} Marker;

static bool starts_item(const Line *l, Marker *m) {
    Text t = {l->at, l->size};
    int i = 0;
    while (t.size && is_space(t.at[0])) t.at++, t.size--;
    *m = (Marker){0};
    if (!t.size) return false;
    if (strchr("-+*", t.at[0])) {
        i = 1;
    } else {
        while (i < t.size && i < 9 && is_digit(t.at[i])) m->number = m->number * 10 + t.at[i++] - '0';
        if (!i || i >= t.size || (t.at[i] != '.' && t.at[i] != ')')) return false;
        i++;
    }
    if (i < t.size && !is_space(t.at[i])) return false;
    m->mark = t.at[i - 1];
    m->bytes = i;
    Line rest = {t.at + i, t.size - i, 0, 0, false};
    m->empty = line_blank(&rest);
    return true;
}

/* Whether this line ends a paragraph that is open above it. */
static bool interrupts(const Line *l) {
    Marker m;
    if (l->lazy || line_indent(l) >= 4) return false;
    if (starts_rule(l) || starts_heading(l) || starts_fence(l) || starts_quote(l)) return true;
    return starts_item(l, &m) && !m.empty && (!is_digit(line_text(l).at[0]) || m.number == 1);
}

/* Whether the innermost text of this line is a paragraph's, which a lazy line can continue. */
static bool holds_paragraph(Line l) {
    for (int depth = 0; depth < NESTING_MAX; depth++) {
        Marker m;
        if (line_blank(&l)) return false;
        int indent = line_indent(&l);
        if (!l.lazy && indent >= 4) return false;
        l = line_strip(l, indent);
        if (l.lazy) return true;
        if (starts_rule(&l) || starts_heading(&l) || starts_fence(&l)) return false;
        if (starts_quote(&l)) l = line_skip(l, 1);
        else if (starts_item(&l, &m)) l = line_skip(l, m.bytes);
        else return true;
        if (l.size && is_space(l.at[0])) l = line_strip(l, 1);
    }
    return false;
}

/* -- collecting the lines of a container ----------------------------------------------------------------- */
typedef struct {
    Line *lines;
    int used, room;
    bool paragraph; /* the last line is text that may be continued lazily */
    char fence;     /* inside a fence of this mark ... */
    int fence_length;
} Content;

static void content_add(Content *c, Line l) {
    if (c->used == c->room) {
        c->room = c->room ? c->room * 2 : 8;
        Line *lines = arena_get(&tree_memory, sizeof(Line) * (size_t)c->room);
        if (c->used) memcpy(lines, c->lines, sizeof(Line) * (size_t)c->used);
        c->lines = lines;
    }
    c->lines[c->used++] = l;
    if (c->fence) {
        if (ends_fence(&l, c->fence, c->fence_length)) c->fence = 0;
        c->paragraph = false;
        return;
    }
    int fence = !l.lazy && line_indent(&l) < 4 ? starts_fence(&l) : 0;
    if (fence) {
        c->fence = line_text(&l).at[0];
        c->fence_length = fence;
    }
    c->paragraph = !fence && ((c->paragraph && line_indent(&l) >= 4 && !line_blank(&l)) || holds_paragraph(l));
}

static void parse_blocks(Blocks *to, Line *lines, int count, int depth);

static int parse_quote(Blocks *to, Line *lines, int count, int depth) {
    Content inside = {0};
    int i = 0;
    for (; i < count; i++) {
        Line l = lines[i];
        int indent = line_indent(&l);
        if (!l.lazy && indent < 4 && starts_quote(&l)) {
            l = line_skip(line_strip(l, indent), 1);
            if (l.size && is_space(l.at[0])) l = line_strip(l, 1);
        } else if (!line_blank(&l) && inside.paragraph && !interrupts(&l)) {
            l.lazy = true;
        } else {
            break;
        }
        content_add(&inside, l);
    }
    Block *quote = block_add(to, BLOCK_QUOTE);
    Blocks children = {0};
    parse_blocks(&children, inside.lines, inside.used, depth + 1);
    quote->child = children.first;
    return i;
}

static int parse_list(Blocks *to, Line *lines, int count, int depth) {
    Marker first, m;
    starts_item(&lines[0], &first);
    Block *list = block_add(to, BLOCK_LIST);
    list->ordered = first.mark == '.' || first.mark == ')';
    list->level = first.number;
    Blocks items = {0};
    int i = 0;
    while (i < count) {
        Line l = lines[i];
        int indent = line_indent(&l);
        if (l.lazy || indent >= 4 || starts_rule(&l) || !starts_item(&l, &m) || m.mark != first.mark) break;
        Content inside = {0};
        l = line_skip(line_strip(l, indent), m.bytes);
        int space = line_indent(&l);
        int width = indent + m.bytes + (m.empty || space > 4 ? 1 : space);
        content_add(&inside, line_strip(l, m.empty || space > 4 ? 1 : space));
        int end = ++i; /* behind the last line that is not blank */
        for (; i < count; i++) {
            Line next = lines[i];
            if (line_blank(&next)) {
                if (m.empty && inside.used == 1) break; /* an item that starts with two blank lines */
                content_add(&inside, line_strip(next, width));
                continue;
            }
            if (!next.lazy && line_indent(&next) >= width) {
                next = line_strip(next, width);
            } else if (inside.paragraph && !interrupts(&next) && !(line_indent(&next) < 4 && starts_item(&next, &(Marker){0}))) {
                next.lazy = true;
            } else {
                break;
            }
            content_add(&inside, next);
            end = i + 1;
        }
        bool blank = end < i || (i < count && line_blank(&lines[i]));
        inside.used -= i - end;
        Block *item = block_add(&items, BLOCK_ITEM);
        Blocks children = {0};
        parse_blocks(&children, inside.lines, inside.used, depth + 1);
        item->child = children.first;
        list->loose |= children.gap;
        while (i < count && line_blank(&lines[i])) i++, blank = true;
        items.pending = blank;
        if (i >= count && blank) {
            i = end;
            break;
        }
        if (blank && i < count) {
            /* blank lines behind the last item belong to what stands around the list */
            l = lines[i];
            if (l.lazy || line_indent(&l) >= 4 || starts_rule(&l) || !starts_item(&l, &m) || m.mark != first.mark) {
                i = end;
                break;
            }
        }
    }
    list->loose |= items.gap;
    list->child = items.first;
    return i;
}

/* -- tables -------------------------------------------------------------------------------------------------- */
/* The next cell of a row: from *at to the next '|' that no backslash or code span guards. */
static bool next_cell(Text row, int *at, Text *cell) {
    if (*at >= row.size) return false;
    int i = *at;
    for (; i < row.size && row.at[i] != '|'; i++)
        if (row.at[i] == '\\' && i + 1 < row.size) i++;
    if (i > row.size) i = row.size;
    *cell = text_trim((Text){row.at + *at, i - *at});
    *at = i + 1;
    return true;
}

static Text table_row(const Line *l) {
    Text t = line_text(l);
    if (t.size && t.at[0] == '|') t.at++, t.size--;
    int slashes = 0; /* an escaped pipe at the end closes nothing */
    while (t.size - 2 - slashes >= 0 && t.at[t.size - 2 - slashes] == '\\') slashes++;
    if (t.size && t.at[t.size - 1] == '|' && slashes % 2 == 0) t.size--;
    return t;
}

static int table_cells(const Line *l) {
    Text row = table_row(l), cell;
    int n = 0;
    for (int at = 0; next_cell(row, &at, &cell);) n++;
    return n;
}

/* Number of columns when this is the row of dashes under a table's head, else 0. */
static int table_rule(const Line *l, char align[TABLE_COLUMNS_MAX]) {
    Text row = table_row(l), cell;
    int n = 0;
    if (!memchr(l->at, '-', (size_t)l->size)) return 0;
    for (int at = 0; next_cell(row, &at, &cell); n++) {
        if (n == TABLE_COLUMNS_MAX) return 0;
        bool left = cell.size && cell.at[0] == ':';
        bool right = cell.size > 1 && cell.at[cell.size - 1] == ':';
        for (int i = left; i < cell.size - right; i++)
            if (cell.at[i] != '-') return 0;
        if (cell.size - left - right < 1) return 0;
        align[n] = left && right ? 'c' : right ? 'r' : left ? 'l' : 0;
    }
    return n;
}

static int parse_table(Blocks *to, Line *lines, int count) {
    char align[TABLE_COLUMNS_MAX];
    if (count < 2 || lines[1].lazy || line_indent(&lines[1]) >= 4) return 0;
    if (!memchr(lines[0].at, '|', (size_t)lines[0].size)) return 0;
    int columns = table_rule(&lines[1], align);
    if (!columns || table_cells(&lines[0]) != columns) return 0;
    int i = 2;
    while (i < count && !line_blank(&lines[i]) && !interrupts(&lines[i])) i++;
    Block *table = block_add(to, BLOCK_TABLE);
    table->lines = lines;
    table->count = i;
    return i;
}

/* -- paragraphs ------------------------------------------------------------------------------------------------ */
/* Take link definitions off the front of a paragraph. */
static Text take_definitions(Text t) {
    for (;;) {
        Text label, url, title = {0};
        int i = scan_label(t, &label);
        if (i < 0 || i >= t.size || t.at[i] != ':') return t;
        i = skip_white(t, i + 1);
        int n = i < t.size ? scan_destination(text_from(t, i), &url) : -1;
        if (n < 0 || (n == 0)) return t;
        i += n;
        int end = i; /* where it ends when there is no title */
        while (end < t.size && is_space(t.at[end])) end++;
        bool bare = end >= t.size || t.at[end] == '\n';
        int at = skip_white(t, i);
        int used = at > i ? scan_title(text_from(t, at), &title) : -1;
        if (used > 0) {
            int behind = at + used;
            while (behind < t.size && is_space(t.at[behind])) behind++;
            if (behind >= t.size || t.at[behind] == '\n') end = behind;
            else if (bare) title = (Text){0};
            else return t;
        } else if (!bare) {
            return t;
        }
        definition_add(label, text_unescape(&tree_memory, url), text_unescape(&tree_memory, title));
        t = text_from(t, skip_white(t, end));
    }
}

static Text join_lines(const Line *lines, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++) size += (size_t)lines[i].size + 1;
    char *out = arena_get(&tree_memory, size);
    int used = 0;
    for (int i = 0; i < count; i++) {
        Text t = {lines[i].at, lines[i].size};
        while (t.size && is_space(t.at[0])) t.at++, t.size--;
        memcpy(out + used, t.at, (size_t)t.size);
        used += t.size;
        out[used++] = '\n';
    }
    return text_trim((Text){out, used});
}

static int parse_paragraph(Blocks *to, Line *lines, int count) {
    int i = 1, level = 0;
    for (; i < count && !line_blank(&lines[i]); i++) {
        const Line *l = &lines[i];
        if (!l->lazy && line_indent(l) < 4) {
            Text t = line_text(l);
            bool same = t.size && (t.at[0] == '=' || t.at[0] == '-');
            for (int k = 1; k < t.size && same; k++) same = t.at[k] == t.at[0];
            if (same) {
                level = t.at[0] == '=' ? 1 : 2;
                break;
            }
        }
        if (interrupts(l)) break;
    }
    Text text = take_definitions(join_lines(lines, i));
    if (!text.size) { /* an underline under definitions alone is a paragraph of its own */
        to->gap |= to->pending && to->last;
        return i;
    }
    Block *made = block_add(to, level ? BLOCK_HEADING : BLOCK_PARAGRAPH);
    made->text = text;
    made->level = level;
    return i + (level ? 1 : 0);
}

static int parse_fence(Blocks *to, Line *lines, int count, int length) {
    int indent = line_indent(&lines[0]);
    Text head = line_text(&lines[0]);
    Block *code = block_add(to, BLOCK_CODE);
    code->info = text_unescape(&tree_memory, text_trim(text_from(head, length)));
    code->lines = lines + 1;
    int i = 1;
    for (; i < count; i++) {
        if (ends_fence(&lines[i], head.at[0], length)) break;
        lines[i] = line_strip(lines[i], indent);
    }
    code->count = i - 1;
    return i < count ? i + 1 : i;
}

static int parse_indented(Blocks *to, Line *lines, int count) {
    int i = 0, end = 0;
    for (; i < count && (line_blank(&lines[i]) || (!lines[i].lazy && line_indent(&lines[i]) >= 4)); i++) {
        if (!line_blank(&lines[i])) end = i + 1;
        lines[i] = line_strip(lines[i], 4);
    }
    Block *code = block_add(to, BLOCK_CODE);
    code->lines = lines;
    code->count = end;
    return end;
}

static void parse_heading(Blocks *to, const Line *l, int level) {
    Text t = text_trim(text_from(line_text(l), level));
    int end = t.size;
    while (end > 0 && t.at[end - 1] == '#') end--; /* a closing sequence of '#' */
    if (end == 0 || is_space(t.at[end - 1])) t = text_trim((Text){t.at, end});
    Block *made = block_add(to, BLOCK_HEADING);
    made->text = t;
    made->level = level;
}

static void parse_blocks(Blocks *to, Line *lines, int count, int depth) {
    for (int i = 0; i < count;) {
        Line *l = &lines[i];
        Marker m;
        int left = count - i, n = 0, level;
        if (line_blank(l)) {
            to->pending = true;
            i++;
            continue;
        }
        if (!l->lazy && line_indent(l) >= 4) {
            i += parse_indented(to, l, left);
            continue;
        }
        if (!l->lazy && depth < NESTING_MAX) {
            if ((n = starts_fence(l))) {
                n = parse_fence(to, l, left, n);
            } else if ((level = starts_heading(l))) {
                parse_heading(to, l, level);
                n = 1;
            } else if (starts_rule(l)) {
                block_add(to, BLOCK_RULE);
                n = 1;
            } else if (starts_quote(l)) {
                n = parse_quote(to, l, left, depth);
            } else if (starts_item(l, &m)) {
                n = parse_list(to, l, left, depth);
            } else {
                n = parse_table(to, l, left);
            }
        }
        i += n ? n : parse_paragraph(to, l, left);
    }
}

/* The blocks of a whole document. */
static Block *parse_document(Text in) {
    Content all = {0};
    int count = 0;
    for (int i = 0; i < in.size; i++) count += in.at[i] == '\n';
    all.lines = arena_get(&tree_memory, sizeof(Line) * (size_t)(count + 1));
    for (int i = 0; i < in.size;) {
        const char *end = memchr(in.at + i, '\n', (size_t)(in.size - i));
        int size = (int)(end - (in.at + i));
        all.lines[all.used++] = (Line){in.at + i, size, 0, 0, false};
        i += size + 1;
    }
    Blocks blocks = {0};
    parse_blocks(&blocks, all.lines, all.used, 0);
    return blocks.first;
}

#endif
