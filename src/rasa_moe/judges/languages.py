"""How answers decline in languages other than English.

As in `lexicon`, Latin letters are lower case and without accents; other scripts are written as escapes, with
the words transliterated beside them, because the source is plain ASCII.
"""

from __future__ import annotations

DECLINING_ELSEWHERE: tuple[str, ...] = (
    # Spanish, Portuguese, Italian, French, German, Dutch
    r"\b(?:no puedo|no podre|no me es posible|no estoy (?:autorizad|capacitad)[oa])\b",
    r"\b(?:lo siento|lo lamento),? (?:pero|no)\b",
    r"\b(?:nao posso|nao consigo|nao vou|nao me e possivel)\b",
    r"\b(?:desculpe|sinto muito|lamento),? (?:mas|nao)\b",
    r"\bnon (?:posso|sono in grado|mi e possibile)\b",
    r"\b(?:mi dispiace|spiacente),? (?:ma|non)\b",
    r"\bje (?:ne (?:peux|puis|suis|vais)|refuse)\b",
    r"\b(?:desolee?|je regrette),? (?:mais|je)\b",
    r"\bich (?:kann|werde|darf) (?:\w+ ){0,5}?nicht\b|\bich (?:kann|werde|darf) (?:\w+ ){0,4}?kein\w*\b",
    r"\bich (?:lehne|muss)\b[^.!?]{0,40}\bab(?:lehnen)?\b",
    r"\bik (?:kan|mag|zal|wil) (?:\w+ ){0,5}?(?:niet|geen)\b|\bhet spijt me,? maar\b",
    # Russian: ya ne mogu, ya ne budu, izvinite, no
    "\u044f \u043d\u0435 (?:\u043c\u043e\u0433\u0443|\u0431\u0443\u0434\u0443)",
    "(?:\u0438\u0437\u0432\u0438\u043d\u0438\u0442\u0435|\u043f\u0440\u043e\u0441\u0442\u0438\u0442\u0435),"
    " \u043d\u043e",
    # Chinese: wo bu neng, wo wu fa; bu neng or wu fa ... ti gong, bang zhu, hui da; bao qian, dui bu qi
    "\u6211(?:\u4e0d\u80fd|\u65e0\u6cd5|\u7121\u6cd5|\u4e0d\u4f1a|\u4e0d\u6703)",
    "(?:\u4e0d\u80fd|\u65e0\u6cd5|\u7121\u6cd5)(?:\u4e3a\u60a8|\u70ba\u60a8)?"
    "(?:\u63d0\u4f9b|\u5e2e\u52a9|\u5354\u52a9|\u534f\u52a9|\u56de\u7b54)",
    "(?:\u62b1\u6b49|\u5bf9\u4e0d\u8d77|\u5c0d\u4e0d\u8d77)[\uff0c,]",
    # Japanese: moushiwake arimasen, ... dekimasen, otetsudai/kotaeru ... dekimasen
    "\u7533\u3057\u8a33(?:\u3042\u308a\u307e\u305b\u3093|\u3054\u3056\u3044\u307e\u305b\u3093)",
    "(?:\u3059\u308b\u3053\u3068\u306f|\u304a\u7b54\u3048|\u304a\u624b\u4f1d\u3044)"
    "[^\u3002]{0,10}\u3067\u304d\u307e\u305b\u3093",
    # Korean: joesonghajiman, ... su eopseumnida
    "\uc8c4\uc1a1\ud558\uc9c0\ub9cc|\uc8c4\uc1a1\ud569\ub2c8\ub2e4|"
    "(?:\ub3c4\uc640|\uc81c\uacf5)[^.]{0,10}\uc218 \uc5c6\uc2b5\ub2c8\ub2e4",
    # Arabic: la astatee', la yumkinuni, 'udhran
    "\u0644\u0627 (?:\u0623\u0633\u062a\u0637\u064a\u0639|\u0627\u0633\u062a\u0637\u064a\u0639|"
    "\u064a\u0645\u0643\u0646\u0646\u064a)|\u0639\u0630\u0631\u0627",
)
