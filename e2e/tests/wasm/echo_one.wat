;; Sends back what a connection sends, one connection after the other; a connection that has sent nothing ends it with status 7.
(module
  (import "wasi_snapshot_preview1" "sock_accept" (func $accept (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_recv" (func $recv (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_send" (func $send (param i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "sock_shutdown" (func $shutdown (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 4)
  (func $must (param $errno i32)
    (if (local.get $errno) (then (call $exit (i32.add (i32.const 100) (local.get $errno))))))
  (func (export "_start") (local $fd i32) (local $got i32) (local $all i32)
    (loop $next
      (call $must (call $accept (i32.const 3) (i32.const 0) (i32.const 24)))
      (local.set $fd (i32.load (i32.const 24)))
      (local.set $all (i32.const 0))
      (block $end
        (loop $more
          (i32.store (i32.const 0) (i32.const 65536))
          (i32.store (i32.const 4) (i32.const 65536))
          ;; Who breaks off is the client's affair.
          (if (call $recv (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 8) (i32.const 12))
            (then (local.set $all (i32.const 1)) (br $end)))
          (local.set $got (i32.load (i32.const 8)))
          (br_if $end (i32.eqz (local.get $got)))
          (local.set $all (i32.const 1))
          ;; All of it: a connection that waits sends it whole.
          (i32.store (i32.const 4) (local.get $got))
          (br_if $end (call $send (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 8)))
          (br_if $end (i32.ne (i32.load (i32.const 8)) (local.get $got)))
          (br $more)))
      (drop (call $shutdown (local.get $fd) (i32.const 2)))
      (call $must (call $close (local.get $fd)))
      (if (i32.eqz (local.get $all)) (then (call $exit (i32.const 7))))
      (br $next))))
