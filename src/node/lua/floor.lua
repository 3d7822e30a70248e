-- Floor: what was forgotten, and what it keeps from coming back (protocol, section 5).

-- The highest promise that this node ever forgot, as token, proposer and raw bytes. Worked out at most once a batch.
local read_floor = raws[FLOOR_SLOT]
local floor_token, floor_proposer, floor_raw
local function floor()
  if not floor_token then
    floor_raw = read_floor or redis.call('GET', FLOOR_KEY) or ''
    floor_token, floor_proposer = 0, NO_PROPOSER
    if floor_raw ~= '' then
      for i = 1, 8 do
        floor_token = floor_token * 256 + string.byte(floor_raw, i)
      end
      floor_proposer = string.sub(floor_raw, 9, 16)
    end
  end
  return floor_token, floor_proposer, floor_raw
end

-- On an absent key nothing at or below the floor is taken, or an old message could bring back what was forgotten.
-- By token alone, so that no token is given twice. The member list is never forgotten and under no floor.
local function under_floor(slot, token)
  if slot == MEMBERS_SLOT then
    return false
  end
  local forgotten = floor()
  return token <= forgotten
end
