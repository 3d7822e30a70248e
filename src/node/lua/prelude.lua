-- Prelude: constants and helpers that the operations share. The lines CLUSTER, INDEX, NODES and FORMAT are put before
-- this file when the script is assembled, so that the script's digest is no other cluster's and no other node's.
-- Everything is local: Redis refuses globals.

local RECORDS = 'majorityd:r:'
local NODE_KEY = 'majorityd:node'
local FLOOR_KEY = 'majorityd:floor'
local WRITES_KEY = 'majorityd:writes'
local MEMBERS = 'm:'
local CHANGES = 'majorityd:' .. CLUSTER .. ':changes'
local DAEMONS = 'majorityd:' .. CLUSTER .. ':d:'

-- Fields of a record, a MessagePack array. STAMPS is flat: name, microseconds since which it is held, name, … PLACE is
-- false or {set, member, milliseconds}: where a queue's item stands in its queue (place.lua).
local PROMISE_TOKEN, PROMISE_PROPOSER = 1, 2
local BALLOT_TOKEN, BALLOT_PROPOSER = 3, 4
local VID, RECENT, VALUE, STAMPS, GUARD_MS, COPIED, LISTED, PLACE = 5, 6, 7, 8, 9, 10, 11, 12

-- Fields of the node record.
local NODE_FORMAT, NODE_CLUSTER, NODE_N, NODE_INDEX, NODE_RUN, NODE_MEMORY, NODE_ASIDE = 1, 2, 3, 4, 5, 6, 7
-- The last id that a join began with, how far that join is, where its removal of old data goes on, and the ballot of the
-- recovery that it belongs to; how many records were merged, and when it last moved.
local NODE_BEGUN, NODE_PHASE, NODE_CURSOR, NODE_RECOVERY, NODE_MERGED, NODE_MOVED = 8, 9, 10, 11, 12, 13
local SERVING, WIPING, MERGING = 0, 1, 2

-- Operations.
local READ, PREPARE, ACCEPT, LIST, FOUND = 1, 2, 3, 4, 5
local BEGIN_JOIN, MERGE, END_JOIN, PAGE, BALLOTS, FORGET, REPORT, MISSED = 6, 7, 8, 9, 10, 11, 12, 13
local CLAIM, CENSUS = 14, 15

-- Answers. The bare numbers stand for themselves, the others head an array.
local ACCEPTED, RECORD, PROMISED, HELD, CONFLICT, NAMES = 1, 2, 3, 4, 5, 6
local TOO_FAR_AHEAD, NOT_SERVING, FAILED, GATED = 7, 8, 9, 10
local WIPING_YET, PAGE_OF, BALLOTS_OF, FORGOTTEN, REPORTED, CLAIMED, CENSUS_OF = 11, 12, 13, 14, 15, 16, 17

local NO_PROPOSER = string.rep('\0', 8)
local DAY_MS = 86400000
local TOKEN_EPOCH_MS = 1704067200000
local TOKENS_PER_MS = 4096

-- The node's own clock, frozen while the script runs. Microseconds fit a double until the year 2255.
local now_us
do
  local time = redis.call('TIME')
  now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function load(key)
  local raw = redis.call('GET', RECORDS .. key)
  if raw then
    return cmsgpack.unpack(raw), raw
  end
end

-- Whether the batch has changed anything: such batches are counted, so that a recovery can tell who has lost some.
local wrote = false

local function store(key, record)
  wrote = true
  local raw = cmsgpack.pack(record)
  redis.call('SET', RECORDS .. key, raw)
  return raw
end

-- A stamp from the future was set before this node's clock went back. Its time starts anew, or it would not age until
-- the clock has caught up, which may take years.
local function not_ahead(since)
  return since > now_us and now_us or since
end

-- Whether what guards a record has yet to age, by this node's clock. <= because a lease of exactly its length is not aged
-- yet: aged means longer. Below zero the clock has gone back, which a promise sets right.
local function is_guarded(record)
  if record[GUARD_MS] == 0 then
    return false
  end
  local age = now_us - record[STAMPS][2]
  return age >= 0 and age <= record[GUARD_MS] * 1000
end

-- Bytes by value. Lua's own < on strings goes by the server's locale.
local function bytes_below(a, b)
  for i = 1, 8 do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return false
end

-- Ballots, field by field.
local function below(a_token, a_proposer, b_token, b_proposer)
  if a_token ~= b_token then
    return a_token < b_token
  end
  return bytes_below(a_proposer, b_proposer)
end

-- The highest promise that this node ever forgot, as token, proposer and raw bytes. Read at most once a batch.
local floor_token, floor_proposer, floor_raw
local function floor()
  if not floor_token then
    floor_raw = redis.call('GET', FLOOR_KEY) or ''
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
local function under_floor(key, token)
  if key == MEMBERS then
    return false
  end
  local forgotten = floor()
  return token <= forgotten
end

-- Only liveness depends on this: a daemon whose clock is far ahead would push everybody's tokens there for good.
local function too_far_ahead(token)
  return token / TOKENS_PER_MS + TOKEN_EPOCH_MS > now_us / 1000 + DAY_MS
end
