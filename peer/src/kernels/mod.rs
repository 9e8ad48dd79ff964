//! The small door to arithmetic: safe functions that choose the fast CPU kernel or candle's own by device.
