"""Bridges to other libraries; imported when asked for."""
