/*
 * markdown - Markdown on stdin, safe HTML on stdout.
 *
 * CommonMark, and of GitHub's extensions tables, strike-through, task lists and bare links. Raw
 * HTML is never passed on: it is shown as the text it is. Links and images keep only schemes
 * that cannot run code. So the output may be put into a page that others read.
 *
 * Options: --document  a whole page instead of a fragment
 *          --ids       an id on each heading, to link to
 *          --no-images show an image's words instead of it
 */
#include "block.h"

enum { INPUT_BYTES_MAX = 16 << 20, PADDED_CELLS_MAX = 100000 };

static bool option_document, option_ids;

/* -- headings' ids: the words in lower case joined by '-', a number where one comes again ---------- */
typedef struct {
    Text slug;
    int times;
} Slug;
static Slug *slugs;
static int slugs_used, slugs_room;

static Text slug_of(Text t) {
    char *out = arena_get(&tree_memory, (size_t)t.size + 8);
    int used = 0;
    for (int i = 0; i < t.size; i++) {
        unsigned char c = (unsigned char)t.at[i];
        if (is_alnum(c) || c >= 0x80) out[used++] = (char)to_lower(c);
        else if ((is_white(c) || c == '-' || c == '_') && used && out[used - 1] != '-') out[used++] = '-';
    }
    while (used && out[used - 1] == '-') used--;
    return used ? (Text){out, used} : (Text){"section", 7};
}

static void put_number(int n) {
    char digits[12];
    int at = sizeof digits;
    do digits[--at] = (char)('0' + n % 10);
    while (n /= 10);
    guest_put(digits + at, sizeof digits - (size_t)at);
}

static void put_id(Text heading) {
    Text slug = slug_of(heading);
    int same = 0;
    /* past a thousand headings a search of the list would cost too much: each gets a number */
    int looked = slugs_used < 1000 ? slugs_used : 0;
    for (int i = 0; i < looked; i++)
        if (slugs[i].slug.size == slug.size && !memcmp(slugs[i].slug.at, slug.at, (size_t)slug.size)) {
            same = ++slugs[i].times;
            break;
        }
    guest_puts(" id=\"");
    put_escaped(slug);
    if (slugs_used >= 1000) same = slugs_used;
    if (same) guest_puts("-"), put_number(same);
    guest_puts("\"");
    if (!same || slugs_used >= 1000) {
        GROW(slugs, slugs_used, slugs_room);
        slugs[slugs_used++] = (Slug){slug, 0};
    }
}

/* -- blocks as HTML -------------------------------------------------------------------------------------- */
static void put_blocks(const Block *block, bool tight);

static void put_code(const Block *code) {
    guest_puts("<pre><code");
    Text language = code->info;
    for (int i = 0; i < language.size; i++)
        if (is_white((unsigned char)language.at[i])) language.size = i;
    if (language.size) {
        guest_puts(" class=\"language-");
        put_escaped(language);
        guest_puts("\"");
    }
    guest_puts(">");
    for (int i = 0; i < code->count; i++) {
        for (int pad = code->lines[i].pad; pad > 0; pad--) guest_puts(" ");
        put_escaped((Text){code->lines[i].at, code->lines[i].size});
        guest_puts("\n");
    }
    guest_puts("</code></pre>\n");
}

/* In a table `\|` is a pipe, also inside code. */
static Text cell_text(Text cell) {
    char *out = arena_get(&tree_memory, (size_t)cell.size + 1);
    int used = 0;
    for (int i = 0; i < cell.size; i++) {
        if (cell.at[i] == '\\' && i + 1 < cell.size && cell.at[i + 1] == '|') i++;
        out[used++] = cell.at[i];
    }
    return (Text){out, used};
}

static void put_row(const Line *line, const char *tag, const char *align, int columns) {
    Text row = table_row(line), cell;
    static int padded;
    int at = 0;
    guest_puts("<tr>\n");
    for (int i = 0; i < columns; i++) {
        bool have = next_cell(row, &at, &cell);
        /* a wide head over short rows must not make a page of nothing but empty cells */
        if (!have && ++padded > PADDED_CELLS_MAX) break;
        guest_puts("<");
        guest_puts(tag);
        if (align[i])
            guest_puts(align[i] == 'c' ? " align=\"center\"" : align[i] == 'r' ? " align=\"right\"" : " align=\"left\"");
        guest_puts(">");
        if (have && cell.size) inline_render(cell_text(cell));
        guest_puts("</");
        guest_puts(tag);
        guest_puts(">\n");
    }
    guest_puts("</tr>\n");
}

static void put_table(const Block *table) {
    char align[TABLE_COLUMNS_MAX];
    int columns = table_rule(&table->lines[1], align);
    guest_puts("<table>\n<thead>\n");
    put_row(&table->lines[0], "th", align, columns);
    guest_puts("</thead>\n");
    if (table->count > 2) {
        guest_puts("<tbody>\n");
        for (int i = 2; i < table->count; i++) put_row(&table->lines[i], "td", align, columns);
        guest_puts("</tbody>\n");
    }
    guest_puts("</table>\n");
}

/* `[ ]` and `[x]` in front of an item's first paragraph. */
static bool put_task_box(Block *item) {
    Block *p = item->child;
    if (!p || p->kind != BLOCK_PARAGRAPH || p->text.size < 4) return false;
    const char *s = p->text.at;
    if (s[0] != '[' || s[2] != ']' || s[3] != ' ' || (s[1] != ' ' && (s[1] | 32) != 'x')) return false;
    p->text = text_trim(text_from(p->text, 4));
    return true;
}

static void put_list(const Block *list) {
    guest_puts(list->ordered ? "<ol" : "<ul");
    if (list->ordered && list->level != 1) {
        guest_puts(" start=\"");
        put_number(list->level);
        guest_puts("\"");
    }
    guest_puts(">\n");
    for (Block *item = list->child; item; item = item->next) {
        bool checked = item->child && item->child->text.size > 1 && (item->child->text.at[1] | 32) == 'x';
        guest_puts("<li>");
        if (put_task_box(item))
            guest_puts(checked ? "<input type=\"checkbox\" checked disabled> " : "<input type=\"checkbox\" disabled> ");
        if (item->child && (list->loose || item->child->kind != BLOCK_PARAGRAPH)) guest_puts("\n");
        put_blocks(item->child, !list->loose);
        guest_puts("</li>\n");
    }
    guest_puts(list->ordered ? "</ol>\n" : "</ul>\n");
}

static void put_blocks(const Block *block, bool tight) {
    for (; block; block = block->next) {
        char heading[] = "<h1";
        switch (block->kind) {
        case BLOCK_PARAGRAPH:
            if (!tight) guest_puts("<p>");
            inline_render(block->text);
            if (!tight) guest_puts("</p>\n");
            else if (block->next) guest_puts("\n");
            break;
        case BLOCK_HEADING:
            heading[2] = (char)('0' + block->level);
            guest_puts(heading);
            if (option_ids) put_id(block->text);
            guest_puts(">");
            inline_render(block->text);
            guest_puts("</");
            guest_puts(heading + 1);
            guest_puts(">\n");
            break;
        case BLOCK_RULE: guest_puts("<hr>\n"); break;
        case BLOCK_CODE: put_code(block); break;
        case BLOCK_QUOTE:
            guest_puts("<blockquote>\n");
            put_blocks(block->child, false);
            guest_puts("</blockquote>\n");
            break;
        case BLOCK_LIST: put_list(block); break;
        case BLOCK_TABLE: put_table(block); break;
        case BLOCK_ITEM: break;
        }
    }
}

static void put_document_head(const Block *block) {
    Text title = {"Untitled", 8};
    for (const Block *b = block; b; b = b->next)
        if (b->kind == BLOCK_HEADING && b->text.size) {
            title = b->text;
            break;
        }
    guest_puts("<!doctype html>\n<html>\n<head>\n<meta charset=\"utf-8\">\n"
               "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>");
    put_escaped(title);
    guest_puts("</title>\n</head>\n<body>\n");
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--document")) option_document = true;
        else if (!strcmp(argv[i], "--ids")) option_ids = true;
        else if (!strcmp(argv[i], "--no-images")) option_no_images = true;
        else guest_fail(GUEST_USAGE, "usage: markdown [--document] [--ids] [--no-images]");
    }
    size_t size;
    unsigned char *in = guest_read_all(INPUT_BYTES_MAX, &size);
    const Block *document = parse_document(text_clean(in, size));
    if (option_document) put_document_head(document);
    put_blocks(document, false);
    if (option_document) guest_puts("</body>\n</html>\n");
    guest_flush();
    return 0;
}
