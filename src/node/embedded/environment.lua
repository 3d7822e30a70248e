-- What a script finds in an embedded server, as in Redis 7. Called with the Rust side's `run` (a command's reply, an
-- error as {err = …}), `pack`, `unpack` and `unpack_limit` (what is wrong; or false, and what it returns). Returns the
-- environment of scripts, where ARGV is put, and `invoke`.
-- The wrappers are here and not in Rust so that what they raise is a table or a string and not the binding's userdata.
local run, pack, unpack_all, unpack_some = ...

local function call(...)
  local reply = run(...)
  if type(reply) == 'table' and reply.err then
    error(reply, 0)
  end
  return reply
end

local function checked(bad, ...)
  if bad then
    -- Level 3 names the line of the script: between it and this is a tail call.
    error(bad, 3)
  end
  return ...
end

local function unpack_string(bytes)
  return checked(unpack_all(bytes))
end

local function unpack_limit(bytes, limit, offset)
  return checked(unpack_some(bytes, limit, offset))
end

local environment = {
  redis = { call = call, pcall = run },
  cmsgpack = { pack = pack, unpack = unpack_string, unpack_limit = unpack_limit },
  string = string, table = table, math = math,
  assert = assert, error = error, ipairs = ipairs, next = next, pairs = pairs, pcall = pcall, rawequal = rawequal,
  rawget = rawget, select = select, setmetatable = setmetatable, getmetatable = getmetatable, tonumber = tonumber,
  tostring = tostring, type = type, unpack = unpack, xpcall = xpcall,
}
-- Nothing that a script does may differ from one run to the next.
math.random, math.randomseed = nil, nil

setmetatable(environment, {
  __index = function(_, name)
    error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
  end,
  __newindex = function()
    error('Attempt to modify a readonly table', 2)
  end,
})

-- Runs a script; true and what it returns, or false and the message.
local function invoke(script)
  local done, result = pcall(script)
  if not done and type(result) == 'table' then
    result = result.err
  end
  return done, result
end

return environment, invoke
