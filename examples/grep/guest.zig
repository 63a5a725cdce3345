//! What an agent needs around the guest/1 ABI: stdin, stdout, stderr, argv, memory, the exit code.

const Slice = extern struct { at: usize, size: usize };

const wasi = struct {
    extern "wasi_snapshot_preview1" fn fd_read(fd: u32, iovs: *const Slice, count: usize, got: *usize) u32;
    extern "wasi_snapshot_preview1" fn fd_write(fd: u32, iovs: *const Slice, count: usize, wrote: *usize) u32;
    extern "wasi_snapshot_preview1" fn args_sizes_get(count: *usize, size: *usize) u32;
    extern "wasi_snapshot_preview1" fn args_get(argv: [*]usize, buffer: [*]u8) u32;
    extern "wasi_snapshot_preview1" fn proc_exit(code: u32) noreturn;
};

/// Exit codes, the same in all the examples.
pub const refused = 1;
pub const usage = 2;
pub const no_memory = 3;

pub fn exit(code: u32) noreturn {
    wasi.proc_exit(code);
}

fn write(fd: u32, data: []const u8) void {
    var rest = data;
    while (rest.len > 0) {
        var wrote: usize = 0;
        const iov = Slice{ .at = @intFromPtr(rest.ptr), .size = rest.len };
        if (wasi.fd_write(fd, &iov, 1, &wrote) != 0 or wrote == 0) exit(refused);
        rest = rest[wrote..];
    }
}

pub fn fail(code: u32, message: []const u8) noreturn {
    write(2, message);
    write(2, "\n");
    exit(code);
}

// -- memory: taken, never given back; one run, then the module is gone ----------------------------
const page = 65536;
var heap_at: usize = 0;
var heap_end: usize = 0;

pub fn alloc(comptime T: type, count: usize) []T {
    const bytes = (@as(u64, count) * @sizeOf(T) + 15) & ~@as(u64, 15);
    if (bytes > heap_end - heap_at) {
        const pages = (bytes + page - 1) / page;
        const at = if (pages > 65535) -1 else @wasmMemoryGrow(0, @intCast(pages));
        if (at < 0) fail(no_memory, "out of memory");
        const from: usize = @as(usize, @intCast(at)) * page;
        // new pages follow the old ones, since nothing else grows the memory
        if (from != heap_end) heap_at = from;
        heap_end = from + @as(usize, @intCast(pages)) * page;
    }
    const made: [*]T = @ptrFromInt(heap_at);
    heap_at += @intCast(bytes);
    return made[0..count];
}

/// A list that grows.
pub fn List(comptime T: type) type {
    return struct {
        const Self = @This();
        items: []T = &.{},
        room: usize = 0,

        pub fn add(self: *Self, item: T) void {
            if (self.items.len == self.room) self.reserve(1);
            self.items.len += 1;
            self.items[self.items.len - 1] = item;
        }

        pub fn addAll(self: *Self, more: []const T) void {
            if (self.items.len + more.len > self.room) self.reserve(more.len);
            const from = self.items.len;
            self.items.len += more.len;
            @memcpy(self.items[from..], more);
        }

        pub fn reserve(self: *Self, more: usize) void {
            const used = self.items.len;
            var room = if (self.room == 0) @as(usize, 64) else self.room;
            while (room < used + more) room *= 2;
            const bigger = alloc(T, room);
            @memcpy(bigger[0..used], self.items);
            self.items = bigger[0..used];
            self.room = room;
        }

        pub fn clear(self: *Self) void {
            self.items.len = 0;
        }
    };
}

pub fn readAll(max: usize) []u8 {
    var input: List(u8) = .{};
    while (true) {
        if (input.room - input.items.len < page) input.reserve(page);
        var got: usize = 0;
        const iov = Slice{ .at = @intFromPtr(input.items.ptr) + input.items.len, .size = input.room - input.items.len };
        if (wasi.fd_read(0, &iov, 1, &got) != 0) fail(refused, "cannot read the input");
        if (got == 0) return input.items;
        input.items.len += got;
        if (input.items.len > max) fail(refused, "the input is larger than 16 MiB");
    }
}

/// argv, its first entry (the program's own name) included.
pub fn args() [][]const u8 {
    var count: usize = 0;
    var size: usize = 0;
    if (wasi.args_sizes_get(&count, &size) != 0) return &.{};
    const pointers = alloc(usize, count + 1);
    const buffer = alloc(u8, size + 1);
    if (wasi.args_get(pointers.ptr, buffer.ptr) != 0) return &.{};
    const out = alloc([]const u8, count);
    for (out, pointers[0..count]) |*arg, at| {
        const text: [*]const u8 = @ptrFromInt(at);
        var end: usize = 0;
        while (text[end] != 0) end += 1;
        arg.* = text[0..end];
    }
    return out;
}

// -- output, buffered ---------------------------------------------------------------------------------
var out_buffer: [16384]u8 = undefined;
var out_used: usize = 0;

pub fn put(data: []const u8) void {
    if (data.len > out_buffer.len - out_used) flush();
    if (data.len > out_buffer.len) return write(1, data);
    @memcpy(out_buffer[out_used..][0..data.len], data);
    out_used += data.len;
}

pub fn putNumber(value: usize) void {
    var digits: [20]u8 = undefined;
    var at: usize = digits.len;
    var rest = value;
    while (true) {
        at -= 1;
        digits[at] = '0' + @as(u8, @intCast(rest % 10));
        rest /= 10;
        if (rest == 0) break;
    }
    put(digits[at..]);
}

pub fn flush() void {
    write(1, out_buffer[0..out_used]);
    out_used = 0;
}

// -- text -----------------------------------------------------------------------------------------------
pub const Char = struct { code: u21, size: u3, valid: bool };

/// The character at `at`; a byte that starts none counts as U+FFFD of one byte.
pub fn decode(text: []const u8, at: usize) Char {
    const c = text[at];
    const bad = Char{ .code = 0xFFFD, .size = 1, .valid = false };
    if (c < 0x80) return .{ .code = c, .size = 1, .valid = true };
    if (c < 0xC2 or c > 0xF4) return bad;
    const size: u3 = if (c < 0xE0) 2 else if (c < 0xF0) 3 else 4;
    if (text.len - at < size) return bad;
    var code: u21 = c & (@as(u8, 0x7F) >> size);
    for (text[at + 1 ..][0 .. size - 1]) |more| {
        if (more & 0xC0 != 0x80) return bad;
        code = code << 6 | (more & 0x3F);
    }
    const least: u21 = if (size == 2) 0x80 else if (size == 3) 0x800 else 0x10000;
    if (code < least or code > 0x10FFFF or (code >= 0xD800 and code < 0xE000)) return bad;
    return .{ .code = code, .size = size, .valid = true };
}
