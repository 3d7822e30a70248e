-- read {READ, slot}: what is held, changing nothing (protocol, section 1).
-- Answers {RECORD, raw record or false}. The daemon works out ages from the batch's time. A repeat does the same again.
read = function(slot)
  if shut and slot ~= MEMBERS_SLOT then
    return shut
  end
  return { RECORD, load(slot) }
end
