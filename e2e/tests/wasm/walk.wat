;; Walks a tree in depth, which takes some seconds, and chains a hash through its leaves; says it every now and then.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $hash (mut i64) (i64.const 0xcbf29ce484222325))
  (global $leaves (mut i32) (i32.const 0))
  (func $say (local $at i32)
    (local.set $at (i32.const 16))
    (loop $digit
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (i32.store8 (i32.add (i32.const 64) (local.get $at))
        (i32.add (i32.const 97) (i32.wrap_i64
          (i64.and (i64.shr_u (global.get $hash) (i64.extend_i32_u (i32.shl (local.get $at) (i32.const 2)))) (i64.const 15)))))
      (br_if $digit (local.get $at)))
    (i32.store8 (i32.const 80) (i32.const 10))
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 17))
    (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable)))
  (func $walk (param $depth i32) (param $key i64) (result i64)
    (if (result i64) (local.get $depth)
      (then
        (i64.add
          (call $walk (i32.sub (local.get $depth) (i32.const 1)) (i64.shl (local.get $key) (i64.const 1)))
          (call $walk (i32.sub (local.get $depth) (i32.const 1))
            (i64.or (i64.shl (local.get $key) (i64.const 1)) (i64.const 1)))))
      (else
        (global.set $hash (i64.mul (i64.xor (global.get $hash) (local.get $key)) (i64.const 0x100000001b3)))
        (global.set $leaves (i32.add (global.get $leaves) (i32.const 1)))
        (if (i32.eqz (i32.and (global.get $leaves) (i32.const 0x3fffff))) (then (call $say)))
        (i64.rotl (global.get $hash) (i64.const 7)))))
  (func (export "_start")
    (global.set $hash (call $walk (i32.const 27) (i64.const 1)))
    (call $say)))
