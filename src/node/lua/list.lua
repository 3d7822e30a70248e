-- list {LIST, kind, min, max, limit}: names of listed registers in byte order, by this node's index alone.
-- min and max are as ZRANGEBYLEX takes them. Answers {NAMES, array}. A hint: the daemon reads each name by quorum.
UPKEEP[LIST] = function(operation)
  local names = redis.call('ZRANGEBYLEX', 'majorityd:i:' .. operation[2], operation[3], operation[4],
    'LIMIT', 0, operation[5])
  return { NAMES, names }
end
