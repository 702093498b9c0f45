-- The row "luajit": numeric loops, tables and strings that a tracing compiler turns into machine code.
local bit = require("bit")

local function sieve(n)
  local composite, count = {}, 0
  for i = 2, n do composite[i] = false end
  for i = 2, n do
    if not composite[i] then
      count = count + 1
      for j = i * i, n, i do composite[j] = true end
    end
  end
  return count
end
for _ = 1, 3 do print("sieve", sieve(1500000)) end

local function mandelbrot(size)
  local inside = 0
  for y = 0, size - 1 do
    for x = 0, size - 1 do
      local cr, ci, zr, zi, n = 3 * x / size - 2, 2 * y / size - 1, 0, 0, 0
      while n < 60 and zr * zr + zi * zi < 4 do
        zr, zi, n = zr * zr - zi * zi + cr, 2 * zr * zi + ci, n + 1
      end
      if n == 60 then inside = inside + 1 end
    end
  end
  return inside
end
print("mandelbrot", mandelbrot(400))

local hash = 1
for i = 1, 20000000 do
  hash = bit.bxor(bit.rol(hash, 5), i)
  if bit.band(hash, 7) == 3 then hash = bit.tobit(hash + 77) end
end
print("hash", hash)

local function fib(n)
  if n < 2 then return n end
  return fib(n - 1) + fib(n - 2)
end
print("fib", fib(32))

local text, found = ("abcdefghijklmnopqrstuvwxyz0123456789"):rep(200), 0
for round = 1, 60 do
  for i = 1, #text do
    if text:byte(i) % 7 == round % 7 then found = found + i end
  end
end
print("bytes", found)

local ffi = require("ffi")
local cells = ffi.new("int32_t[?]", 65536)
for round = 1, 100 do
  for i = 1, 65534 do cells[i] = bit.tobit(cells[i - 1] + cells[i + 1] + round + i) end
end
print("cells", cells[777], cells[65000])
