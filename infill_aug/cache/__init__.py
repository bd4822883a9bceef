"""Where finished infills live on disk, and how they get there."""
