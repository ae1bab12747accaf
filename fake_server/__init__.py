"""A fake of both GPU clouds, MatrixDC and AutoDL, whose machines really answer over SSH. It rents nothing."""
