;; Answers requests, by the first letter of their path: /echo gives back the body, /wait waits a second, /trap traps, /spin computes
;; without end, /bomb takes all memory and traps, /quiet gives no answer. Others get how often this instance was asked.
(module
  (import "wasi:http/types@0.2.0" "[method]incoming-request.path-with-query" (func $path (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[method]incoming-request.consume" (func $consume (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[method]incoming-body.stream" (func $input (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[constructor]fields" (func $fields (result i32)))
  (import "wasi:http/types@0.2.0" "[constructor]outgoing-response" (func $response (param i32) (result i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-response.body" (func $body (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[method]outgoing-body.write" (func $output (param i32 i32)))
  (import "wasi:http/types@0.2.0" "[static]outgoing-body.finish" (func $finish (param i32 i32 i32 i32)))
  (import "wasi:http/types@0.2.0" "[static]response-outparam.set"
    (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.0" "[method]input-stream.blocking-read" (func $read (param i32 i64 i32)))
  (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
    (func $write (param i32 i32 i32 i32)))
  (import "wasi:io/streams@0.2.0" "[resource-drop]output-stream" (func $drop-output (param i32)))
  (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))
  (import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $timer (param i64) (result i32)))
  (memory (export "memory") 2)
  (global $free (mut i32) (i32.const 65536))
  (global $asked (mut i32) (i32.const 0))

  ;; Nothing is ever given back, but for what was read: $echo begins anew.
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (local $at i32)
    (local.set $at (i32.and (i32.add (global.get $free) (i32.const 7)) (i32.const -8)))
    (global.set $free (i32.add (local.get $at) (local.get 3)))
    (local.get $at))

  (func $say (param $output i32) (param $at i32) (param $length i32)
    (call $write (local.get $output) (local.get $at) (local.get $length) (i32.const 64))
    (if (i32.load8_u (i32.const 64)) (then unreachable)))

  (func $echo (param $request i32) (param $output i32) (local $input i32)
    (call $consume (local.get $request) (i32.const 64))
    (call $input (i32.load (i32.const 68)) (i32.const 64))
    (local.set $input (i32.load (i32.const 68)))
    (loop $more
      (global.set $free (i32.const 65536))
      (call $read (local.get $input) (i64.const 4096) (i32.const 64))
      (if (i32.eqz (i32.load8_u (i32.const 64)))
        (then
          (call $say (local.get $output) (i32.load (i32.const 68)) (i32.load (i32.const 72)))
          (br $more)))))

  (func (export "wasi:http/incoming-handler@0.2.0#handle") (param $request i32) (param $out i32)
    (local $letter i32) (local $response i32) (local $body i32) (local $output i32)
    (global.set $asked (i32.add (global.get $asked) (i32.const 1)))
    (call $path (local.get $request) (i32.const 16))
    (local.set $letter (i32.load8_u (i32.add (i32.load (i32.const 20)) (i32.const 1))))
    (if (i32.eq (local.get $letter) (i32.const 0x74)) (then unreachable))
    (if (i32.eq (local.get $letter) (i32.const 0x71)) (then return))
    (if (i32.eq (local.get $letter) (i32.const 0x73)) (then (loop $spin (br $spin))))
    (if (i32.eq (local.get $letter) (i32.const 0x62))
      (then
        (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
        unreachable))
    (if (i32.eq (local.get $letter) (i32.const 0x77))
      (then (call $block (call $timer (i64.const 1000000000)))))
    (local.set $response (call $response (call $fields)))
    (call $body (local.get $response) (i32.const 64))
    (local.set $body (i32.load (i32.const 68)))
    (call $set (local.get $out) (i32.const 0) (local.get $response)
      (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
    (call $output (local.get $body) (i32.const 64))
    (local.set $output (i32.load (i32.const 68)))
    (if (i32.eq (local.get $letter) (i32.const 0x65))
      (then (call $echo (local.get $request) (local.get $output)))
      (else
        (i32.store8 (i32.const 128) (i32.add (i32.const 0x30) (global.get $asked)))
        (call $say (local.get $output) (i32.const 128) (i32.const 1))))
    (call $drop-output (local.get $output))
    (call $finish (local.get $body) (i32.const 0) (i32.const 0) (i32.const 64))))
