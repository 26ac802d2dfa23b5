"""The channels of alerts: a webhook, and e-mail by SMTP. Errors never show a URL: it contains a secret."""

import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from kyc_pipeline.errors import KycError
from kyc_pipeline.orchestration.alerts.model import Message
from kyc_pipeline.settings import Settings, is_loopback

TIMEOUT_SECONDS: Final = 10.0
"""For one step of a delivery; the sensor limits all steps together."""


class Channel(Protocol):
    """A way to deliver messages."""

    @property
    def name(self) -> str:
        """The setting that configures it."""

    def send(self, message: Message) -> None:
        """Delivers the message once. Raises :class:`KycError` unless the receiver accepted it."""


def channels(settings: Settings) -> list[Channel]:
    """The configured channels."""
    found: list[Channel] = []
    if settings.kyc_alert_webhook is not None:
        found.append(Webhook(settings.kyc_alert_webhook, settings.kyc_alert_webhook_form == "slack"))
    if settings.kyc_alert_smtp_url is not None:
        recipients = sorted(settings.kyc_alert_email_to)
        found.append(Email(settings.kyc_alert_smtp_url, settings.kyc_alert_email_from or "", recipients))
    return found


@dataclass(frozen=True)
class Webhook:
    """`KYC_ALERT_WEBHOOK`: an HTTP POST of JSON, which must get a 2xx status."""

    url: SecretStr
    is_slack: bool = False
    name: str = "KYC_ALERT_WEBHOOK"

    def send(self, message: Message) -> None:
        """See :class:`Channel`."""
        import httpx  # imported here because it takes half a second

        try:
            # Not `post`, which reads the body: only the status counts, and a body may never end.
            with httpx.stream(
                "POST",
                self.url.get_secret_value(),
                json=message.as_slack() if self.is_slack else message.as_json(),
                timeout=TIMEOUT_SECONDS,
                trust_env=False,
                follow_redirects=False,
            ) as response:
                if not response.is_success:
                    raise KycError(f"{self.name}: not delivered (it responded with {response.status_code})")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise KycError(f"{self.name}: not delivered ({type(error).__name__})") from None


@dataclass(frozen=True)
class Email:
    """`KYC_ALERT_SMTP_URL`: `smtps://` is TLS from the start, `smtp://` STARTTLS (plain text on loopback)."""

    url: SecretStr
    sender: str = field(repr=False)
    recipients: Sequence[str] = field(repr=False)
    name: str = "KYC_ALERT_SMTP_URL"

    def send(self, message: Message) -> None:
        """See :class:`Channel`. It succeeds if the server accepts at least one recipient."""
        try:
            with self._connected() as server:
                server.send_message(self._mail(message), self.sender, list(self.recipients))
        except (smtplib.SMTPException, OSError) as error:
            # `from None`: the server's text may quote addresses.
            code = getattr(error, "smtp_code", None)
            reason = f"{type(error).__name__}, code {code}" if code else type(error).__name__
            raise KycError(f"{self.name}: not delivered ({reason})") from None

    def _connected(self) -> smtplib.SMTP:
        url = urlsplit(self.url.get_secret_value())
        host = url.hostname or ""
        server: smtplib.SMTP
        if url.scheme == "smtps":
            server = smtplib.SMTP_SSL(
                host, url.port or 465, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context()
            )
        else:
            server = smtplib.SMTP(host, url.port or 587, timeout=TIMEOUT_SECONDS)
        try:
            server.ehlo()
            if url.scheme == "smtp" and (not is_loopback(host) or server.has_extn("starttls")):
                server.starttls(context=ssl.create_default_context())
            if url.username:
                server.login(unquote(url.username), unquote(url.password or ""))
        except BaseException:
            server.close()
            raise
        return server

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        mail["Subject"] = message.subject[:200]
        mail["From"] = self.sender
        mail["To"] = ", ".join(self.recipients)
        mail["Message-ID"] = f"<{message.id}@kyc-pipeline>"
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(message.text)
        return mail
