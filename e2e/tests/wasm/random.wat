;; Prints eight random numbers and the time, as letters.
(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\00\02\00\00\30\00\00\00")
  (func (export "_start") (local $at i32)
    (drop (call $random (i32.const 512) (i32.const 40)))
    (drop (call $time (i32.const 0) (i64.const 1) (i32.const 552)))
    (loop $letters
      (i32.store8 (i32.add (i32.const 512) (local.get $at))
        (i32.add (i32.const 97)
          (i32.rem_u (i32.load8_u (i32.add (i32.const 512) (local.get $at))) (i32.const 26))))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (br_if $letters (i32.lt_u (local.get $at) (i32.const 48))))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
