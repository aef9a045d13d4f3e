"""From what people have to batches on the device."""
