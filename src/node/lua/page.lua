-- page {PAGE, cursor, count, bytes, recovery, with values, [key, …]}: some of this node's records, in an order of its own.
-- Without keys it goes on from the cursor ('0' begins, and as the answer's cursor ends); every record that is there all
-- the while comes at least once. With keys it shows those. Records past so many bytes come without their value, to be
-- asked for by key; the first always has it. A recovery names its ballot, which must be what this node has promised on
-- the list, and passes the gate with it.
-- Answers {PAGE_OF, cursor, floor token, floor proposer, [key, raw record or false, …]}.
UPKEEP[PAGE] = function(operation)
  local cursor, with_values, keys = operation[2], operation[6] == 1, operation[7]
  local prefix = #RECORDS
  if #keys == 0 then
    local page = redis.call('SCAN', cursor, 'MATCH', RECORDS .. '*', 'COUNT', operation[3])
    cursor = page[1]
    for i, key in ipairs(page[2]) do
      keys[i] = string.sub(key, prefix + 1)
    end
  end
  local rows, bytes = {}, 0
  for i, key in ipairs(keys) do
    local raw = false
    if with_values and (i == 1 or bytes < operation[4]) then
      raw = redis.call('GET', RECORDS .. key)
      bytes = bytes + (raw and #raw or 0)
    end
    rows[2 * i - 1], rows[2 * i] = key, raw
  end
  local forgotten_token, forgotten_proposer = floor()
  return { PAGE_OF, cursor, forgotten_token, forgotten_proposer, rows }
end

-- A record is read as a whole, however little of it is shown: what so many bytes take is a fraction of a millisecond.
local BALLOTS_BYTES = 262144

-- ballots {BALLOTS, [key, …]}: what is held, without the values. Guard is 0 for none, 1 for one that has aged by this node's
-- clock, and 2 for one that has not. Only of as many keys, in their order, as so many bytes of records have; of one at least.
-- Answers {BALLOTS_OF, [false or {ballot token, ballot proposer, promise token, promise proposer, copied, listed, guard},
-- …]}.
UPKEEP[BALLOTS] = function(operation)
  local held, bytes = {}, 0
  for i, key in ipairs(operation[2]) do
    if bytes >= BALLOTS_BYTES then
      break
    end
    local record, raw = load_record(key)
    bytes = bytes + (raw and #raw or 0)
    held[i] = record and {
      record[BALLOT_TOKEN], record[BALLOT_PROPOSER], record[PROMISE_TOKEN], record[PROMISE_PROPOSER],
      record[COPIED], record[LISTED], record[GUARD_MS] == 0 and 0 or is_guarded(record[GUARD_MS], record[STAMPS]) and 2 or 1,
    } or false
  end
  return { BALLOTS_OF, held }
end
