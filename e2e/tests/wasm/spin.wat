(module (func $spin (export "_start") (loop $forever (br $forever))))
