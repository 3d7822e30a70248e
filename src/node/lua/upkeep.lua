-- What the operations of upkeep share. This file and those after it up to dispatch are run only in batches that have such
-- an operation: making functions is a good part of what a small batch costs.

-- The floor goes with what was under it, also where this batch has already read it.
local function drop_floor()
  floor_token, floor_proposer, floor_raw = 0, NO_PROPOSER, ''
  redis.call('UNLINK', FLOOR_KEY)
end

local function raise_floor(token, proposer)
  local forgotten_token, forgotten_proposer = floor()
  if not below(forgotten_token, forgotten_proposer, token, proposer) then
    return
  end
  local bytes, rest = {}, token
  for i = 8, 1, -1 do
    bytes[i] = string.char(rest % 256)
    rest = math.floor(rest / 256)
  end
  floor_token, floor_proposer, floor_raw = token, proposer, table.concat(bytes) .. proposer
  redis.call('SET', FLOOR_KEY, floor_raw)
end
