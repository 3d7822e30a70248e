-- forget {FORGET, [key, ballot token, ballot proposer, promise token, …]}: removes records that say nothing
-- (protocol, section 5). Each only while its ballot is still this one and its promise not past the given token: whoever
-- was promised more is about to write. The floor rises to the highest promise that goes.
-- Answers {FORGOTTEN, how many}.
UPKEEP[FORGET] = function(operation)
  local list, count = operation[2], 0
  for i = 1, #list, 4 do
    local key, token, proposer, promise = list[i], list[i + 1], list[i + 2], list[i + 3]
    local record = load_record(key)
    local same = record and record[BALLOT_TOKEN] == token and record[BALLOT_PROPOSER] == proposer
    if same and key ~= MEMBERS and record[PROMISE_TOKEN] <= promise then
      raise_floor(record[PROMISE_TOKEN], record[PROMISE_PROPOSER])
      redis.call('UNLINK', RECORDS .. key)
      wrote = true
      reindex_record(key, record, nil)
      count = count + 1
    end
  end
  return { FORGOTTEN, count }
end
