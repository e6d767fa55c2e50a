"""The words of captions in seven languages: nouns with their forms, adjectives with their endings, places."""

from __future__ import annotations

from infra.miniweb.scenes import BACKGROUNDS, COLOURS, SHAPES


def _table(keys: tuple[str, ...], text: str) -> dict[str, tuple[str, ...]]:
    """One entry a key, separated by commas; within an entry the forms are separated by slashes."""
    entries = [tuple(form.strip() for form in entry.split("/")) for entry in text.split(",")]
    return dict(zip(keys, entries, strict=True))


LANGUAGES = ("en", "de", "fr", "es", "it", "ja", "zh")

# singular/plural; with gender first where the language has one; in ja and zh noun/counter.
NOUNS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": _table(
        SHAPES,
        "apple/apples, ball/balls, balloon/balloons, bell/bells, bird/birds, boat/boats, box/boxes,"
        "butterfly/butterflies, car/cars, cat/cats, cup/cups, fish/fish, flower/flowers, hat/hats, heart/hearts,"
        "house/houses, kite/kites, leaf/leaves, moon/moons, mushroom/mushrooms, rocket/rockets, star/stars,"
        "tree/trees, umbrella/umbrellas",
    ),
    "de": _table(
        SHAPES,
        "m/Apfel/Äpfel, m/Ball/Bälle, m/Luftballon/Luftballons, f/Glocke/Glocken, m/Vogel/Vögel, n/Boot/Boote,"
        "f/Kiste/Kisten, m/Schmetterling/Schmetterlinge, n/Auto/Autos, f/Katze/Katzen, f/Tasse/Tassen,"
        "m/Fisch/Fische, f/Blume/Blumen, m/Hut/Hüte, n/Herz/Herzen, n/Haus/Häuser, m/Drachen/Drachen,"
        "n/Blatt/Blätter, m/Mond/Monde, m/Pilz/Pilze, f/Rakete/Raketen, m/Stern/Sterne, m/Baum/Bäume,"
        "m/Regenschirm/Regenschirme",
    ),
    "fr": _table(
        SHAPES,
        "f/pomme/pommes, f/balle/balles, m/ballon/ballons, f/cloche/cloches, m/oiseau/oiseaux, m/bateau/bateaux,"
        "f/boîte/boîtes, m/papillon/papillons, f/voiture/voitures, m/chat/chats, f/tasse/tasses, m/poisson/poissons,"
        "f/fleur/fleurs, m/chapeau/chapeaux, m/cœur/cœurs, f/maison/maisons, m/cerf-volant/cerfs-volants,"
        "f/feuille/feuilles, f/lune/lunes, m/champignon/champignons, f/fusée/fusées, f/étoile/étoiles,"
        "m/arbre/arbres, m/parapluie/parapluies",
    ),
    "es": _table(
        SHAPES,
        "f/manzana/manzanas, f/pelota/pelotas, m/globo/globos, f/campana/campanas, m/pájaro/pájaros, m/barco/barcos,"
        "f/caja/cajas, f/mariposa/mariposas, m/coche/coches, m/gato/gatos, f/taza/tazas, m/pez/peces,"
        "f/flor/flores, m/sombrero/sombreros, m/corazón/corazones, f/casa/casas, f/cometa/cometas,"
        "f/hoja/hojas, f/luna/lunas, f/seta/setas, m/cohete/cohetes, f/estrella/estrellas, m/árbol/árboles,"
        "m/paraguas/paraguas",
    ),
    "it": _table(
        SHAPES,
        "f/mela/mele, f/palla/palle, m/palloncino/palloncini, f/campana/campane, m/uccello/uccelli, f/barca/barche,"
        "f/scatola/scatole, f/farfalla/farfalle, f/macchina/macchine, m/gatto/gatti, f/tazza/tazze, m/pesce/pesci,"
        "m/fiore/fiori, m/cappello/cappelli, m/cuore/cuori, f/casa/case, m/aquilone/aquiloni,"
        "f/foglia/foglie, f/luna/lune, m/fungo/funghi, m/razzo/razzi, f/stella/stelle, m/albero/alberi,"
        "m/ombrello/ombrelli",
    ),
    "ja": _table(
        SHAPES,
        "りんご/個, ボール/個, 風船/個, ベル/個, 鳥/羽, 船/隻, 箱/個, 蝶/匹, 車/台, 猫/匹, カップ/個, 魚/匹,"
        "花/本, 帽子/個, ハート/個, 家/軒, 凧/枚, 葉/枚, 月/個, きのこ/本, ロケット/機, 星/個, 木/本, 傘/本",
    ),
    "zh": _table(
        SHAPES,
        "苹果/个, 球/个, 气球/个, 铃铛/个, 小鸟/只, 船/艘, 箱子/个, 蝴蝶/只, 汽车/辆, 猫/只, 杯子/个, 鱼/条,"
        "花/朵, 帽子/顶, 爱心/颗, 房子/座, 风筝/只, 叶子/片, 月亮/个, 蘑菇/朵, 火箭/枚, 星星/颗, 树/棵, 雨伞/把",
    ),
}

# fr, es, it: masculine/feminine/masculine plural/feminine plural, or one form for all.
COLOUR_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": _table(COLOURS, "red, orange, yellow, green, blue, purple, pink, brown, white, black"),
    "de": _table(COLOURS, "rot, orangefarben, gelb, grün, blau, violett, rosafarben, braun, weiß, schwarz"),
    "fr": _table(
        COLOURS,
        "rouge/rouge/rouges/rouges, orange, jaune/jaune/jaunes/jaunes, vert/verte/verts/vertes,"
        "bleu/bleue/bleus/bleues, violet/violette/violets/violettes, rose/rose/roses/roses, marron,"
        "blanc/blanche/blancs/blanches, noir/noire/noirs/noires",
    ),
    "es": _table(
        COLOURS,
        "rojo/roja/rojos/rojas, naranja, amarillo/amarilla/amarillos/amarillas, verde/verde/verdes/verdes,"
        "azul/azul/azules/azules, morado/morada/morados/moradas, rosa, marrón/marrón/marrones/marrones,"
        "blanco/blanca/blancos/blancas, negro/negra/negros/negras",
    ),
    "it": _table(
        COLOURS,
        "rosso/rossa/rossi/rosse, arancione/arancione/arancioni/arancioni, giallo/gialla/gialli/gialle,"
        "verde/verde/verdi/verdi, blu, viola, rosa, marrone/marrone/marroni/marroni,"
        "bianco/bianca/bianchi/bianche, nero/nera/neri/nere",
    ),
    "ja": _table(COLOURS, "赤い, オレンジ色の, 黄色い, 緑の, 青い, 紫の, ピンクの, 茶色い, 白い, 黒い"),
    "zh": _table(COLOURS, "红色, 橙色, 黄色, 绿色, 蓝色, 紫色, 粉色, 棕色, 白色, 黑色"),
}

_TEXTURES = ("striped", "spotted", "checkered")
TEXTURE_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": _table(_TEXTURES, "striped, spotted, checkered"),
    "de": _table(_TEXTURES, "gestreift, gepunktet, kariert"),
    "fr": _table(_TEXTURES, "à rayures, à pois, à carreaux"),
    "es": _table(_TEXTURES, "a rayas, de lunares, a cuadros"),
    "it": _table(_TEXTURES, "a righe, a pois, a quadri"),
    "ja": _table(_TEXTURES, "縞模様の, 水玉模様の, 市松模様の"),
    "zh": _table(_TEXTURES, "条纹, 圆点, 格子"),
}

_SIZES = ("small", "large")
SIZE_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": _table(_SIZES, "small, large"),
    "de": _table(_SIZES, "klein, groß"),
    "fr": _table(_SIZES, "petit/petite/petits/petites, grand/grande/grands/grandes"),
    "es": _table(_SIZES, "pequeño/pequeña/pequeños/pequeñas, grande/grande/grandes/grandes"),
    "it": _table(_SIZES, "piccolo/piccola/piccoli/piccole, grande/grande/grandi/grandi"),
    "ja": _table(_SIZES, "小さな, 大きな"),
    "zh": _table(_SIZES, "小, 大"),
}

# From two to five; one is the article.
NUMBERS: dict[str, tuple[str, ...]] = {
    "en": ("two", "three", "four", "five"),
    "de": ("zwei", "drei", "vier", "fünf"),
    "fr": ("deux", "trois", "quatre", "cinq"),
    "es": ("dos", "tres", "cuatro", "cinco"),
    "it": ("due", "tre", "quattro", "cinque"),
    "ja": ("2", "3", "4", "5"),
    "zh": ("两", "三", "四", "五"),
}

# Several forms are paraphrases: any of them will do.
BACKGROUND_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": _table(
        BACKGROUNDS,
        "on a meadow/in a grassy field, on the beach/by the sea, at night/under the night sky,"
        "in the snow/on a snowy day,"
        "in the desert/among sand dunes, in a room/indoors, at sunset/in the evening light,"
        "on a plain background/against a plain backdrop",
    ),
    "de": _table(
        BACKGROUNDS,
        "auf einer Wiese/auf der Wiese, am Strand/am Meer, bei Nacht/nachts, im Schnee/in einer Schneelandschaft,"
        "in der Wüste/zwischen Dünen, in einem Zimmer/im Zimmer, bei Sonnenuntergang/im Abendlicht,"
        "vor einfarbigem Hintergrund/auf schlichtem Grund",
    ),
    "fr": _table(
        BACKGROUNDS,
        "dans un pré/sur une prairie, sur la plage/au bord de la mer, la nuit/de nuit, dans la neige/sur la neige,"
        "dans le désert/au milieu des dunes, dans une pièce/à l'intérieur, au coucher du soleil/le soir,"
        "sur un fond uni/devant un fond uni",
    ),
    "es": _table(
        BACKGROUNDS,
        "en un prado/sobre la hierba, en la playa/junto al mar, de noche/por la noche, en la nieve/sobre la nieve,"
        "en el desierto/entre dunas, en una habitación/dentro de una habitación, al atardecer/al anochecer,"
        "sobre un fondo liso/ante un fondo liso",
    ),
    "it": _table(
        BACKGROUNDS,
        "su un prato/in un prato, sulla spiaggia/in riva al mare, di notte/nella notte, nella neve/sulla neve,"
        "nel deserto/tra le dune, in una stanza/dentro una stanza, al tramonto/la sera,"
        "su uno sfondo uniforme/davanti a uno sfondo uniforme",
    ),
    "ja": _table(
        BACKGROUNDS,
        "草原の/野原の, 浜辺の/海辺の, 夜の/夜空の下の, 雪の中の/雪原の, 砂漠の/砂丘の, 部屋の中の/室内の,"
        "夕暮れの/夕焼けの中の, 無地の背景の/無地を背景にした",
    ),
    "zh": _table(
        BACKGROUNDS,
        "草地上/草原上, 沙滩上/海边, 夜晚/夜空下, 雪地里/雪地上, 沙漠里/沙丘上, 房间里/屋里, 日落时/傍晚,"
        "纯色背景上/素色背景前",
    ),
}
