// wasi.ts - stdin, stdout, stderr, argv and the exit code, straight from WASI preview 1.

@external("wasi_snapshot_preview1", "fd_read")
declare function fd_read(fd: i32, iovs: usize, count: i32, got: usize): i32;
@external("wasi_snapshot_preview1", "fd_write")
declare function fd_write(fd: i32, iovs: usize, count: i32, wrote: usize): i32;
@external("wasi_snapshot_preview1", "args_sizes_get")
declare function args_sizes_get(count: usize, size: usize): i32;
@external("wasi_snapshot_preview1", "args_get")
declare function args_get(argv: usize, buffer: usize): i32;
@external("wasi_snapshot_preview1", "proc_exit")
declare function proc_exit(code: i32): void;

const iov = memory.data(16); // one address and length, then the answer

/** Exit codes, the same in all the examples. */
export const REFUSED = 1;
export const USAGE = 2;

function write(fd: i32, at: usize, size: i32): void {
  while (size > 0) {
    store<u32>(iov, at as u32);
    store<u32>(iov, size, 4);
    if (fd_write(fd, iov, 1, iov + 8) != 0 || load<i32>(iov, 8) <= 0) proc_exit(REFUSED);
    const wrote = load<i32>(iov, 8);
    at += wrote;
    size -= wrote;
  }
}

/** Say why on stderr and end. */
export function fail(code: i32, message: string): void {
  const text = String.UTF8.encode(message + "\n");
  write(2, changetype<usize>(text), text.byteLength);
  proc_exit(code);
  unreachable();
}

/** Growing bytes: the input while it is read, the output before it is written. */
export class Bytes {
  at: usize = heap.alloc(65536);
  size: i32 = 0;
  room: i32 = 65536;

  reserve(more: i32): void {
    if (this.size + more <= this.room) return;
    let room = this.room;
    while (this.size + more > room) room *= 2;
    this.at = heap.realloc(this.at, room);
    this.room = room;
  }

  byte(value: i32): void {
    this.reserve(1);
    store<u8>(this.at + this.size++, value as u8);
  }

  copy(from: usize, size: i32): void {
    this.reserve(size);
    memory.copy(this.at + this.size, from, size);
    this.size += size;
  }

  text(value: string): void {
    const bytes = String.UTF8.encode(value);
    this.copy(changetype<usize>(bytes), bytes.byteLength);
  }

  /** To stdout when much waits, or at the end. */
  flush(atLeast: i32): void {
    if (this.size < atLeast) return;
    write(1, this.at, this.size);
    this.size = 0;
  }
}

export function readAll(max: i32): Bytes {
  const input = new Bytes();
  while (true) {
    input.reserve(65536);
    store<u32>(iov, (input.at + input.size) as u32);
    store<u32>(iov, input.room - input.size, 4);
    if (fd_read(0, iov, 1, iov + 8) != 0) fail(REFUSED, "cannot read the input");
    const got = load<i32>(iov, 8);
    if (got == 0) return input;
    input.size += got;
    if (input.size > max) fail(REFUSED, "the input is larger than " + max.toString() + " bytes");
  }
}

/** argv without the program's own name. */
export function args(): Array<string> {
  const out = new Array<string>();
  if (args_sizes_get(iov, iov + 4) != 0) return out;
  const count = load<i32>(iov);
  const pointers = heap.alloc(4 * count + 4);
  if (args_get(pointers, heap.alloc(load<i32>(iov, 4) + 1)) != 0) return out;
  for (let i = 1; i < count; i++) {
    const at = load<u32>(pointers + 4 * i) as usize;
    let size = 0;
    while (load<u8>(at + size) != 0) size++;
    out.push(String.UTF8.decodeUnsafe(at, size));
  }
  return out;
}
