;; A chain of hashes over a table in memory and a recursion. Each link goes into a file, at its place, and then to the output: its number
;; in six digits and the hash, each followed by one byte.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 33)
  (data (i32.const 512) "links")
  (global $hash (mut i64) (i64.const 0xcbf29ce484222325))
  (global $links (mut i32) (i32.const 0))
  (global $file (mut i32) (i32.const 0))
  ;; Stirs a key into the hash, at each leaf of a tree; the hash and the table are one another's.
  (func $walk (param $depth i32) (param $key i64) (result i64)
    (local $at i32)
    (if (result i64) (local.get $depth)
      (then
        (i64.add
          (call $walk (i32.sub (local.get $depth) (i32.const 1)) (i64.shl (local.get $key) (i64.const 1)))
          (call $walk (i32.sub (local.get $depth) (i32.const 1))
            (i64.or (i64.shl (local.get $key) (i64.const 1)) (i64.const 1)))))
      (else
        (global.set $hash (i64.mul (i64.xor (global.get $hash) (local.get $key)) (i64.const 0x100000001b3)))
        (local.set $at (i32.add (i32.const 65536)
          (i32.shl (i32.wrap_i64 (i64.and (i64.shr_u (global.get $hash) (i64.const 20)) (i64.const 0x3ffff))) (i32.const 3))))
        (global.set $hash (i64.xor (global.get $hash) (i64.load (local.get $at))))
        (i64.store (local.get $at) (i64.add (i64.load (local.get $at)) (global.get $hash)))
        (i64.rotl (global.get $hash) (i64.const 7)))))
  ;; At an address: so many digits of a number by a base.
  (func $digits (param $at i32) (param $count i32) (param $number i64) (param $base i64)
    (local $digit i64)
    (loop $next
      (local.set $count (i32.sub (local.get $count) (i32.const 1)))
      (local.set $digit (i64.rem_u (local.get $number) (local.get $base)))
      (local.set $number (i64.div_u (local.get $number) (local.get $base)))
      (i32.store8 (i32.add (local.get $at) (local.get $count))
        (i32.add (i32.wrap_i64 (local.get $digit))
          (select (i32.const 48) (i32.const 87) (i64.lt_u (local.get $digit) (i64.const 10)))))
      (br_if $next (local.get $count))))
  (func $put (param $fd i32)
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 24))
    (if (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
    (if (i32.ne (i32.load (i32.const 8)) (i32.const 24)) (then unreachable)))
  (func (export "_start")
    (if (call $open (i32.const 3) (i32.const 0) (i32.const 512) (i32.const 5) (i32.const 1)
          (i64.const 0x1fffffff) (i64.const 0) (i32.const 0) (i32.const 16)) (then unreachable))
    (global.set $file (i32.load (i32.const 16)))
    (loop $link
      (global.set $hash (i64.add (global.get $hash) (call $walk (i32.const 12) (i64.extend_i32_u (global.get $links)))))
      (global.set $links (i32.add (global.get $links) (i32.const 1)))
      (call $digits (i32.const 64) (i32.const 6) (i64.extend_i32_u (global.get $links)) (i64.const 10))
      (i32.store8 (i32.const 70) (i32.const 32))
      (call $digits (i32.const 71) (i32.const 16) (global.get $hash) (i64.const 16))
      (i32.store8 (i32.const 87) (i32.const 10))
      (call $put (global.get $file))
      (call $put (i32.const 1))
      ;; Some wait a little: 2 ms.
      (if (i32.eqz (i32.and (global.get $links) (i32.const 1)))
        (then
          (i32.store (i32.const 136) (i32.const 1))
          (i64.store (i32.const 144) (i64.const 2000000))
          (if (call $poll (i32.const 120) (i32.const 256) (i32.const 1) (i32.const 8)) (then unreachable))))
      (br $link))))
