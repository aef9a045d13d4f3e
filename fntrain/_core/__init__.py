"""What everything stands on: errors, argument checks, type aliases, values that know the call that made them."""
