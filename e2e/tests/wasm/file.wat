;; Makes the file that its argument names, in its first directory, and writes the name into it. Ends with the errno.
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start") (local $name i32) (local $length i32) (local $errno i32)
    (drop (call $args_sizes (i32.const 16) (i32.const 20)))
    (drop (call $args (i32.const 1024) (i32.const 8192)))
    (local.set $name (i32.load (i32.const 1028)))
    ;; All bytes, but those before the name and its zero byte.
    (local.set $length
      (i32.sub (i32.sub (i32.add (i32.const 8192) (i32.load (i32.const 20))) (local.get $name)) (i32.const 1)))
    ;; Descriptor 3, follow links, create and truncate, to be written.
    (local.set $errno
      (call $open (i32.const 3) (i32.const 1) (local.get $name) (local.get $length) (i32.const 9)
        (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 32)))
    (if (local.get $errno) (then (call $exit (local.get $errno))))
    (i32.store (i32.const 0) (local.get $name))
    (i32.store (i32.const 4) (local.get $length))
    (call $exit (call $write (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 24)))))
