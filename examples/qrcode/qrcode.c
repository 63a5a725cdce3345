/*
 * qrcode - text on stdin, a QR code on stdout as SVG, PNG or text for a terminal.
 *
 * Options: --format=svg|png|text   --level=L|M|Q|H (default M)
 *          --scale=N   pixels of a module, 1 to 32 (default 8)
 *          --margin=N  light modules around the symbol, 0 to 16 (default 4, as the standard wants)
 *          --version=N the smallest version to use, 1 to 40
 *          --dark=RRGGBB --light=RRGGBB
 *          --raw       keep a line break at the end of the input, which is dropped otherwise
 */
#include "png.h"
#include "symbol.h"

static const char levels[] = "LMQH";
static const char usage[] =
    "usage: qrcode [--format=svg|png|text] [--level=L|M|Q|H] [--scale=1..32] [--margin=0..16]\n"
    "              [--version=1..40] [--dark=RRGGBB] [--light=RRGGBB] [--raw]";

typedef struct {
    char format;
    int level, scale, margin, version;
    uint8_t dark[3], light[3];
    bool raw;
} Options;

static int number(const char *text, int from, int to) {
    int value = 0;
    if (!*text) guest_fail(GUEST_USAGE, usage);
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || value > 1000) guest_fail(GUEST_USAGE, usage);
        value = value * 10 + *text - '0';
    }
    if (value < from || value > to) guest_fail(GUEST_USAGE, usage);
    return value;
}

static void colour(const char *text, uint8_t out[3]) {
    if (*text == '#') text++;
    if (strlen(text) != 6) guest_fail(GUEST_USAGE, usage);
    for (int i = 0; i < 6; i++) {
        int c = text[i] | 32;
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (digit < 0) guest_fail(GUEST_USAGE, usage);
        out[i / 2] = (uint8_t)(out[i / 2] << 4 | digit);
    }
}

/* The value of `--name=value`, or NULL when `arg` is another option. */
static const char *value_of(const char *arg, const char *name) {
    size_t n = strlen(name);
    return strncmp(arg, name, n) ? NULL : arg + n;
}

static Options read_options(int argc, char **argv) {
    Options o = {.format = 's', .level = LEVEL_M, .scale = 8, .margin = 4, .version = 1, .light = {255, 255, 255}};
    for (int i = 1; i < argc; i++) {
        const char *v;
        if ((v = value_of(argv[i], "--format="))) {
            if (strcmp(v, "svg") && strcmp(v, "png") && strcmp(v, "text")) guest_fail(GUEST_USAGE, usage);
            o.format = *v;
        } else if ((v = value_of(argv[i], "--level="))) {
            const char *at = *v ? strchr(levels, *v & ~32) : NULL;
            if (!at || !*at || v[1]) guest_fail(GUEST_USAGE, usage);
            o.level = (int)(at - levels);
        } else if ((v = value_of(argv[i], "--scale="))) {
            o.scale = number(v, 1, 32);
        } else if ((v = value_of(argv[i], "--margin="))) {
            o.margin = number(v, 0, 16);
        } else if ((v = value_of(argv[i], "--version="))) {
            o.version = number(v, 1, VERSION_MAX);
        } else if ((v = value_of(argv[i], "--dark="))) {
            colour(v, o.dark);
        } else if ((v = value_of(argv[i], "--light="))) {
            colour(v, o.light);
        } else if (!strcmp(argv[i], "--raw")) {
            o.raw = true;
        } else {
            guest_fail(GUEST_USAGE, usage);
        }
    }
    return o;
}

/* -- output ------------------------------------------------------------------------------------------- */
static void put_number(int n) {
    char digits[12];
    int at = sizeof digits;
    do digits[--at] = (char)('0' + n % 10);
    while (n /= 10);
    guest_put(digits + at, sizeof digits - (size_t)at);
}

static void put_colour(const uint8_t c[3]) {
    static const char hex[] = "0123456789abcdef";
    char out[7] = {'#'};
    for (int i = 0; i < 3; i++) out[1 + 2 * i] = hex[c[i] >> 4], out[2 + 2 * i] = hex[c[i] & 15];
    guest_put(out, sizeof out);
}

static bool dark_at(const Symbol *s, int x, int y) {
    return x >= 0 && y >= 0 && x < s->side && y < s->side && s->dark[y][x];
}

/* One path, one bar for each run of dark modules. */
static void put_svg(const Symbol *s, const Options *o) {
    int side = s->side + 2 * o->margin;
    guest_puts("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 ");
    put_number(side);
    guest_puts(" ");
    put_number(side);
    guest_puts("\" width=\"");
    put_number(side * o->scale);
    guest_puts("\" height=\"");
    put_number(side * o->scale);
    guest_puts("\" shape-rendering=\"crispEdges\">\n<path fill=\"");
    put_colour(o->light);
    guest_puts("\" d=\"M0 0h");
    put_number(side);
    guest_puts("v");
    put_number(side);
    guest_puts("H0z\"/>\n<path fill=\"");
    put_colour(o->dark);
    guest_puts("\" d=\"");
    for (int y = 0; y < s->side; y++)
        for (int x = 0; x < s->side; x++) {
            int from = x;
            while (dark_at(s, x, y)) x++;
            if (x == from) continue;
            guest_puts("M");
            put_number(from + o->margin);
            guest_puts(" ");
            put_number(y + o->margin);
            guest_puts("h");
            put_number(x - from);
            guest_puts("v1h-");
            put_number(x - from);
            guest_puts("z");
        }
    guest_puts("\"/>\n</svg>\n");
}

static void put_image(const Symbol *s, const Options *o) {
    int side = (s->side + 2 * o->margin) * o->scale;
    size_t row = (size_t)(side + 7) / 8 + 1, size = row * (size_t)side;
    uint8_t *rows = memset(guest_alloc(size), 0, size);
    for (int y = 0; y < side; y++)
        for (int x = 0; x < side; x++)
            if (dark_at(s, x / o->scale - o->margin, y / o->scale - o->margin))
                rows[(size_t)y * row + 1 + (size_t)(x >> 3)] |= (uint8_t)(0x80 >> (x & 7));
    put_png(rows, side, o->light, o->dark);
}

/* Two modules a character. Terminals are dark, so light modules are what is drawn. */
static void put_text(const Symbol *s, const Options *o) {
    static const char *const cells[] = {"\xE2\x96\x88", "\xE2\x96\x80", "\xE2\x96\x84", " "};
    for (int y = -o->margin; y < s->side + o->margin; y += 2) {
        for (int x = -o->margin; x < s->side + o->margin; x++) {
            bool below = y + 1 >= s->side + o->margin || dark_at(s, x, y + 1);
            guest_puts(cells[dark_at(s, x, y) * 2 + below]);
        }
        guest_puts("\n");
    }
}

int main(int argc, char **argv) {
    static Symbol symbol;
    Options o = read_options(argc, argv);
    size_t size;
    unsigned char *text = guest_read_all(1 << 20, &size);
    if (!o.raw && size && text[size - 1] == '\n') size--;
    if (!o.raw && size && text[size - 1] == '\r') size--;
    if (!size) guest_fail(GUEST_REFUSED, "there is no text to encode");
    if (size > TEXT_MAX || !symbol_make(&symbol, text, (int)size, o.level, o.version))
        guest_fail(GUEST_REFUSED, "the text is too long for a QR code at this error level");
    if (o.format == 's') put_svg(&symbol, &o);
    else if (o.format == 'p') put_image(&symbol, &o);
    else put_text(&symbol, &o);
    guest_flush();
    return 0;
}
