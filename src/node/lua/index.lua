-- Index: which registers of a kind there are, and where the items of a queue stand. All of it hints, kept by whatever
-- stores or removes a record; what is answered by them is read by quorum. Changes are gathered, to be written with the
-- records.

-- The key of an item is 'q:', the queue, this, and the item's id. Names have no control characters.
local SEPARATOR = '\31'
-- Where kind and name stand in a key in full, and the kind of a queue's items, 'q'.
local KIND_AT, NAME_AT, ITEM = 13, 15, 113

append = function(sets, set, one, two)
  local members = sets[set]
  if not members then
    members = {}
    sets[set] = members
  end
  members[#members + 1] = one
  members[#members + 1] = two
end

-- What the record of a key (in full) said of the index and says now. Where there is none, it says 0 and ''. Nothing is to be
-- done where it is listed as before and has no place.
local function reindex(name, was_listed, was_place, listed, place, due, stamps)
  if string.byte(name, KIND_AT) == ITEM then
    replace(name, was_place, place, due, stamps)
  elseif was_listed ~= listed then
    local set = 'majorityd:i:' .. string.sub(name, KIND_AT, KIND_AT)
    if listed == 1 then
      append(additions, set, '0', string.sub(name, NAME_AT))
    else
      append(removals, set, string.sub(name, NAME_AT))
    end
  end
end
