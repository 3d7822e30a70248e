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

-- Fields of a record, MessagePack values one after the other. What is asked for most comes first, so that the rest need not
-- be unpacked. STAMPS is one string: for each stamp its name, 17 bytes, and the microseconds since which it is held, 16
-- digits. PLACE is where a queue's item stands in its queue, a letter for the set and the member, or ''; DUE is how many
-- milliseconds after its first stamp it is ready again, or 0.
local PROMISE_TOKEN, PROMISE_PROPOSER = 1, 2
local BALLOT_TOKEN, BALLOT_PROPOSER = 3, 4
local COPIED, LISTED, PLACE, DUE, GUARD_MS, STAMPS, VID, RECENT, VALUE = 5, 6, 7, 8, 9, 10, 11, 12, 13
local STAMP_NAME, STAMP_LENGTH = 17, 33

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

local now_as_digits
-- The same as a stamp has it.
local function digits_of_now()
  now_as_digits = now_as_digits or string.format('%016.0f', now_us)
  return now_as_digits
end

-- A stamp from the future was set before this node's clock went back. Its time starts anew, or it would not age until
-- the clock has caught up, which may take years.
local function not_ahead(since)
  return since > now_us and now_us or since
end

-- Ballots, field by field. Most are equal: a promise that is made use of. Proposers byte by byte, because Lua's own < on
-- strings goes by the server's locale.
local function below(a_token, a_proposer, b_token, b_proposer)
  if a_token ~= b_token or a_proposer == b_proposer then
    return a_token < b_token
  end
  for i = 1, 8 do
    local x, y = string.byte(a_proposer, i), string.byte(b_proposer, i)
    if x ~= y then
      return x < y
    end
  end
end

-- Of what a record or a batch begins with, so many values, and where the rest begins before them.
local unpack_limit = cmsgpack.unpack_limit

-- The last token that is not too far ahead. Only liveness depends on this: a daemon whose clock is far ahead would push
-- everybody's tokens there for good.
local last_token = (now_us / 1000 + DAY_MS - TOKEN_EPOCH_MS) * TOKENS_PER_MS
