"""What a training reads: samples, labels, splits and shards of decoded samples."""
