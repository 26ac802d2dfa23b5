"""The lake: the tables through which the stages exchange data, as atomic daily Parquet partitions."""
