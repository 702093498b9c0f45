-- The row "lua": calls, tables, closures, strings, sorting, as an interpreter meets them.
local seed = 1
local function random(n)
  seed = (seed * 16807) % 2147483647
  return seed % n + 1
end

local function fib(n)
  if n < 2 then return n end
  return fib(n - 1) + fib(n - 2)
end
print("fib", fib(27))

local words = {}
for i = 1, 20000 do
  local letters = {}
  for j = 1, random(8) do letters[j] = string.char(96 + random(26)) end
  words[i] = table.concat(letters)
end
table.sort(words)
print("words", words[1], words[10000], words[20000])

local counts = {}
for _, word in ipairs(words) do
  local key = word:sub(1, 2)
  counts[key] = (counts[key] or 0) + 1
end
local keys = {}
for key in pairs(counts) do keys[#keys + 1] = key end
table.sort(keys, function(a, b)
  if counts[a] ~= counts[b] then return counts[a] > counts[b] end
  return a < b
end)
print("counts", #keys, keys[1], counts[keys[1]])

local text = table.concat(words, " ", 1, 8000)
local replaced, times = text:gsub("(%a)(%a+)e", "%2%1")
print("gsub", times, #replaced, select(2, text:gsub("%f[%a]a%a*", "")))

local Point = {}
Point.__index = Point
Point.__add = function(a, b) return setmetatable({ x = a.x + b.x, y = a.y - b.y }, Point) end
function Point:length() return self.x * self.x + self.y * self.y end
local sum = setmetatable({ x = 0, y = 0 }, Point)
for i = 1, 300000 do sum = sum + setmetatable({ x = i % 7, y = i % 5 }, Point) end
print("points", sum:length())

local function counter(step)
  local value = 0
  return function() value = value + step; return value end
end
local total = 0
for i = 1, 20000 do
  local count = counter(i % 3)
  count(); count()
  total = total + count()
end
print("closures", total)

local board, solutions = {}, 0
local function safe(row, column)
  for other = 1, row - 1 do
    local at = board[other]
    if at == column or math.abs(at - column) == row - other then return false end
  end
  return true
end
local function place(row)
  if row > 7 then solutions = solutions + 1; return end
  for column = 1, 7 do
    if safe(row, column) then board[row] = column; place(row + 1) end
  end
end
for _ = 1, 4 do place(1) end
print("queens", solutions)

local lines = {}
for i = 1, 20000 do lines[#lines + 1] = string.format("%05d %s %.3f", i, words[i], i / 7) end
print("format", #table.concat(lines, "\n"))
