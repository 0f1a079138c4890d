"""Tables of series, their time axes and windows."""
