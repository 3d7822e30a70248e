-- Hints: who is told of what was stored. What comes of them is nobody's failure.

publish = function(name, announce, wake)
  if announce == 1 and is_watched == nil then
    local reply = redis.pcall('PUBSUB', 'NUMSUB', CHANGES)
    is_watched = type(reply) == 'table' and (tonumber(reply[2]) or 0) > 0
  end
  local is_told = announce == 1 and is_watched
  if wake == '' and not is_told then
    return
  end
  local key = string.sub(name, #RECORDS + 1)
  for daemon in string.gmatch(wake, '%S+') do
    hints[#hints + 1] = DAEMONS .. daemon
    hints[#hints + 1] = key
  end
  -- Of a queue's items one is as good as another: who waits for any looks for all.
  local end_of_queue = string.find(key, SEPARATOR, 1, true)
  local what = end_of_queue and string.sub(key, 1, end_of_queue) or key
  if is_told and not announced[what] then
    announced[what] = true
    hints[#hints + 1] = CHANGES
    hints[#hints + 1] = key
  end
end
