"""Alerts: what people must act on, posted to a webhook and sent by e-mail.

`model` says what an alert is, and when each kind is sent; `conditions` finds what is new; `channels` deliver;
`sensor` puts them together.
"""
