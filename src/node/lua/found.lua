-- found {FOUND, founding's vid, its token, its proposer, memory}: the founding gives this node its memory
-- (protocol, section 2, "New cluster"). The founder sends it once per node.
-- Refused unless the node's own list is the founding's and nothing has been promised on it since: whoever starts over
-- prepares first, and from then on no late message of the first founder may make a member. Refused also where there is
-- a memory. Answers ACCEPTED or {CONFLICT, token, proposer}.
UPKEEP[FOUND] = function(operation)
  local vid, token, proposer, memory = operation[2], operation[3], operation[4], operation[5]
  local list = load_record(MEMBERS)
  if not list then
    return { CONFLICT, 0, NO_PROPOSER }
  end
  local promised = list[PROMISE_TOKEN] == token and list[PROMISE_PROPOSER] == proposer
  if list[VID] ~= vid or not promised or node[NODE_MEMORY] ~= '' then
    return { CONFLICT, list[PROMISE_TOKEN], list[PROMISE_PROPOSER] }
  end
  node[NODE_MEMORY] = memory
  store_node()
  return ACCEPTED
end
