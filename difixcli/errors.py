"""The one error that is the caller's to mend; `console` turns it into a sentence and exit code 2."""


class InputError(Exception):
    """Bad input or an impossible request.

    The message is one plain sentence that names the file or value at fault and says what to do about it.
    """
