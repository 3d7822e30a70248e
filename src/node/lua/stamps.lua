-- Stamps: what ages in a record, and since when.

-- A stamp with since when it is held, as digits: as before, or by this node's clock from now on.
local function stamp(name, held)
  local at = string.find(held, name, 1, true)
  while at and at % STAMP_LENGTH ~= 1 do
    at = string.find(held, name, at + 1, true)
  end
  if at then
    local digits = string.sub(held, at + STAMP_NAME, at + STAMP_LENGTH - 1)
    if not_ahead(tonumber(digits)) ~= now_us then
      return name .. digits
    end
  end
  return name .. (now_as_digits or digits_of_now())
end

-- What comes before the stamps in MessagePack, and the stamps.
stamps_of = function(stamp_names, held)
  if #stamp_names == STAMP_NAME then
    -- As most are.
    return '\217\33', stamp(stamp_names, held)
  end
  local stamps = {}
  for i = 1, #stamp_names, STAMP_NAME do
    stamps[#stamps + 1] = stamp(string.sub(stamp_names, i, i + STAMP_NAME - 1), held)
  end
  local all = table.concat(stamps)
  return string.sub(cmsgpack.pack(all), 1, -1 - #all), all
end
