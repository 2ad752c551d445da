"""Detached Ed25519 signatures of wheels, and signed provenance statements. Needs the extra ``sign``."""

from cpupack.signing.sign import Signed, provenance_path, sign_wheel, signature_path, verify_signature

__all__ = ["Signed", "provenance_path", "sign_wheel", "signature_path", "verify_signature"]
