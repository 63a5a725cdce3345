// request.ts - the request: a JSON object with the two documents.

import { Bytes, REFUSED, fail } from "./wasi";

/** One text of the request, as UTF-8. */
export class Text {
  constructor(
    public at: usize,
    public size: i32,
  ) {}
}

export class Request {
  a: Text | null = null;
  b: Text | null = null;
  aName: Text | null = null;
  bName: Text | null = null;
}

const DEPTH_MAX = 1000; // of values that are skipped

class Parser {
  private at: i32 = 0;

  constructor(private input: Bytes) {}

  private refuse(why: string): void {
    fail(REFUSED, "byte " + this.at.toString() + ": " + why);
  }

  private peek(): i32 {
    return this.at < this.input.size ? (load<u8>(this.input.at + this.at) as i32) : -1;
  }

  private next(): i32 {
    const c = this.peek();
    this.at++;
    return c;
  }

  private space(): i32 {
    let c = this.peek();
    while (c == 0x20 || c == 0x0a || c == 0x0d || c == 0x09) {
      this.at++;
      c = this.peek();
    }
    return c;
  }

  private expect(what: i32): void {
    if (this.space() != what) this.refuse("expected " + String.fromCharCode(what));
    this.at++;
  }

  private hex4(): u32 {
    let code: u32 = 0;
    for (let i = 0; i < 4; i++) {
      const c = this.next();
      const low = c | 32;
      if (c >= 0x30 && c <= 0x39) code = (code << 4) | (c - 0x30);
      else if (low >= 0x61 && low <= 0x66) code = (code << 4) | (low - 0x61 + 10);
      else this.refuse("expected four hex digits");
    }
    return code;
  }

  /** `\uD83D\uDE00` is one character; half a pair becomes U+FFFD. */
  private unicode(out: Bytes): void {
    let code = this.hex4();
    if (code >= 0xd800 && code <= 0xdbff) {
      const back = this.at;
      let low: u32 = 0;
      if (this.next() == 0x5c && this.next() == 0x75) low = this.hex4();
      if (low >= 0xdc00 && low <= 0xdfff) {
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      } else {
        this.at = back;
        code = 0xfffd;
      }
    } else if (code >= 0xdc00 && code <= 0xdfff) {
      code = 0xfffd;
    }
    if (code < 0x80) {
      out.byte(code);
    } else if (code < 0x800) {
      out.byte(0xc0 | (code >> 6));
      out.byte(0x80 | (code & 63));
    } else if (code < 0x10000) {
      out.byte(0xe0 | (code >> 12));
      out.byte(0x80 | ((code >> 6) & 63));
      out.byte(0x80 | (code & 63));
    } else {
      out.byte(0xf0 | (code >> 18));
      out.byte(0x80 | ((code >> 12) & 63));
      out.byte(0x80 | ((code >> 6) & 63));
      out.byte(0x80 | (code & 63));
    }
  }

  /** Over one string; its text goes to `out`. */
  private string(out: Bytes): void {
    this.expect(0x22);
    while (true) {
      const c = this.next();
      if (c == 0x22) return;
      if (c == 0x5c) {
        const e = this.next();
        if (e == 0x6e) out.byte(0x0a);
        else if (e == 0x74) out.byte(0x09);
        else if (e == 0x72) out.byte(0x0d);
        else if (e == 0x62) out.byte(0x08);
        else if (e == 0x66) out.byte(0x0c);
        else if (e == 0x22 || e == 0x5c || e == 0x2f) out.byte(e);
        else if (e == 0x75) this.unicode(out);
        else this.refuse("not an escape of JSON");
      } else if (c < 0) {
        this.refuse("the string never ends");
      } else if (c < 0x20) {
        this.refuse("a control character stands in a string");
      } else {
        out.byte(c);
      }
    }
  }

  private word(): void {
    const from = this.at;
    while (true) {
      const c = this.peek();
      const plain =
        (c >= 0x30 && c <= 0x39) || ((c | 32) >= 0x61 && (c | 32) <= 0x7a) || c == 0x2b || c == 0x2d || c == 0x2e;
      if (!plain) break;
      this.at++;
    }
    if (this.at == from) this.refuse("expected a value");
  }

  /** Over a value that nobody asked for. */
  private skip(scratch: Bytes): void {
    let depth = 0;
    do {
      const c = this.space();
      if (c == 0x7b || c == 0x5b) {
        if (++depth > DEPTH_MAX) this.refuse("nested too deeply");
        this.at++;
      } else if (c == 0x7d || c == 0x5d) {
        depth--;
        this.at++;
      } else if (depth > 0 && (c == 0x2c || c == 0x3a)) {
        this.at++;
      } else if (c == 0x22) {
        scratch.size = 0;
        this.string(scratch);
      } else {
        this.word();
      }
    } while (depth > 0);
    if (depth < 0) this.refuse("expected a value");
  }

  private static is(key: Bytes, name: string): bool {
    if (key.size != name.length) return false;
    for (let i = 0; i < key.size; i++) {
      if ((load<u8>(key.at + i) as i32) != name.charCodeAt(i)) return false;
    }
    return true;
  }

  private static keep(out: Bytes): Text {
    const at = heap.alloc(out.size + 1);
    memory.copy(at, out.at, out.size);
    return new Text(at, out.size);
  }

  parse(): Request {
    const request = new Request();
    const key = new Bytes();
    const value = new Bytes();
    this.expect(0x7b);
    if (this.space() != 0x7d) {
      while (true) {
        key.size = 0;
        value.size = 0;
        this.string(key);
        this.expect(0x3a);
        const quoted = this.space() == 0x22;
        const mine =
          Parser.is(key, "a") || Parser.is(key, "b") || Parser.is(key, "a_name") || Parser.is(key, "b_name");
        if (mine && !quoted) this.refuse("expected a string");
        if (mine) {
          this.string(value);
          const text = Parser.keep(value);
          if (Parser.is(key, "a")) request.a = text;
          else if (Parser.is(key, "b")) request.b = text;
          else if (Parser.is(key, "a_name")) request.aName = text;
          else request.bName = text;
        } else {
          this.skip(value);
        }
        if (this.space() != 0x2c) break;
        this.at++;
        this.space();
      }
    }
    this.expect(0x7d);
    if (this.space() >= 0) this.refuse("something stands behind the object");
    if (request.a === null || request.b === null) fail(REFUSED, 'the request is {"a": "...", "b": "..."}');
    return request;
  }
}

export function parseRequest(input: Bytes): Request {
  return new Parser(input).parse();
}
