"""Writes the prose that ships, src/rayscope/assets/prose/prose.parquet, from a parquet file of English books.

    python scripts/prose_sample.py books.parquet

The file has the columns text and title, a row per book, without Project Gutenberg's header and licence. It is the one
that the tiny GPT-2 was trained on: of it, only books that the model did not see are taken.
"""

import hashlib
import re
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rayscope.text import split_of

TARGET = Path(__file__).parents[1] / "src/rayscope/assets/prose/prose.parquet"
PLACES, LENGTH = (0.3, 0.65), 4_000  # where passages begin, as fractions of a book; characters, to the paragraph's end
UNWANTED = re.compile(r"gutenberg|transcriber|\[|http|copyright|\|", re.IGNORECASE)  # footnotes, pictures, notices
BOOKS = {  # how the title begins: author; each published before 1929, by an author who died before 1955
    "A Prisoner in Fairyland": "Algernon Blackwood",
    "A Short History of the World": "H. G. Wells",
    "A Tour in Ireland": "Arthur Young",
    "A Tramp Abroad": "Mark Twain",
    "A Week at Waterloo": "Lady De Lancey",
    "Anne of Geierstein": "Walter Scott",
    "Anne of the Island": "L. M. Montgomery",
    "Aunt Jo's Scrap Bag": "Louisa May Alcott",
    "Barnaby Rudge": "Charles Dickens",
    "Behind a Mask": "Louisa May Alcott",
    "Beyond Good and Evil": "Friedrich Nietzsche, translated by Helen Zimmern",
    "Candide": "Voltaire",
    "Celebrated Travels and Travellers": "Jules Verne",
    "Dutch Courage": "Jack London",
    "Euthydemus": "Plato, translated by Benjamin Jowett",
    "Falling in with Fortune": "Horatio Alger",
    "Fire Worship": "Nathaniel Hawthorne",
    "Four Weird Tales": "Algernon Blackwood",
    "Franklin's Way to Wealth": "Benjamin Franklin",
    "Guy Mannering": "Walter Scott",
    "In Greek Waters": "G. A. Henty",
    "In the Closed Room": "Frances Hodgson Burnett",
    "Juana": "Honoré de Balzac, translated by Katharine Prescott Wormeley",
    "Jungle Tales of Tarzan": "Edgar Rice Burroughs",
    "Letters on England": "Voltaire",
    "Letters to Sir William Windham": "Lord Bolingbroke",
    "Life on the Mississippi": "Mark Twain",
    "Lotta Schmidt": "Anthony Trollope",
    "Louis Lambert": "Honoré de Balzac, translated by Clara Bell and James Waring",
    "Madame de Treymes": "Edith Wharton",
    "Mark Mason's Victory": "Horatio Alger",
    "My Lady's Money": "Wilkie Collins",
    "On the Significance of Science and Art": "Leo Tolstoy, translated by Isabel Hapgood",
    "Our Cats": "Harrison Weir",
    "Passages from the English Notebooks": "Nathaniel Hawthorne",
    "Personal Recollections of Joan of Arc": "Mark Twain",
    "Peter Pan": "J. M. Barrie",
    "Slow and Sure": "Horatio Alger",
    "Sons of the Soil": "Honoré de Balzac, translated by Katharine Prescott Wormeley",
    "Spanish Papers": "Washington Irving",
    "Stories of Animal Sagacity": "W. H. G. Kingston",
    "Sunday at Home": "Nathaniel Hawthorne",
    "Tales and Stories": "Mary Wollstonecraft Shelley",
    "Tales of Romance": "Andrew Lang",
    "Tales of Troy": "Andrew Lang",
    "The Adventures of Huckleberry Finn": "Mark Twain",
    "The Ancestral Footstep": "Nathaniel Hawthorne",
    "The Apology of the Church of England": "John Jewel, translated by Ann Bacon",
    "The Bungalow Boys North of Fifty-Three": "John Henry Goldfrap",
    "The Christmas Banquet": "Nathaniel Hawthorne",
    "The Cook's Wedding": "Anton Chekhov, translated by Constance Garnett",
    "The Curious Republic of Gondour": "Mark Twain",
    "The Decoration of Houses": "Edith Wharton and Ogden Codman",
    "The Diamond Pin": "Carolyn Wells",
    "The Firm of Girdlestone": "Arthur Conan Doyle",
    "The Following of the Star": "Florence L. Barclay",
    "The Gilded Age": "Mark Twain and Charles Dudley Warner",
    "The Great Keinplatz Experiment": "Arthur Conan Doyle",
    "The Hidden Masterpiece": "Honoré de Balzac, translated by Katharine Prescott Wormeley",
    "The Life and Adventures of Santa Claus": "L. Frank Baum",
    "The Lost Continent": "Edgar Rice Burroughs",
    "The Master of the World": "Jules Verne",
    "The Memorable Thoughts of Socrates": "Xenophon, translated by Edward Bysshe",
    "The Ocean Wireless Boys and the Lost Liner": "John Henry Goldfrap",
    "The Ocean Wireless Boys on the Pacific": "John Henry Goldfrap",
    "The Old Apple Dealer": "Nathaniel Hawthorne",
    "The Paradise of Children": "Nathaniel Hawthorne",
    "The Prophetic Pictures": "Nathaniel Hawthorne",
    "The Pupil": "Henry James",
    "The Soil": "Émile Zola",
    "The Store Boy": "Horatio Alger",
    "The Surprising Adventures of the Magical Monarch of Mo": "L. Frank Baum",
    "The Tailor of Gloucester": "Beatrix Potter",
    "The Telegraph Boy": "Horatio Alger",
    "The Tin Woodman of Oz": "L. Frank Baum",
    "The Torrents of Spring": "Ivan Turgenev, translated by Constance Garnett",
    "Theaetetus": "Plato, translated by Benjamin Jowett",
    "Thirty Strange Stories": "H. G. Wells",
    "Thoughts Out of Season": "Friedrich Nietzsche, translated by Adrian Collins",
    "Three Prayers and Sermons": "Jonathan Swift",
    "Through the Looking-Glass": "Lewis Carroll",
    "Twelve Stories and a Dream": "H. G. Wells",
    "Waverley": "Walter Scott",
    "Weir of Hermiston": "Robert Louis Stevenson",
    "What Men Live By": "Leo Tolstoy, translated by Aylmer and Louise Maude",
    "Young Captain Jack": "Horatio Alger",
}


def passage(text: str, start: int) -> tuple[str, int]:
    """(whole paragraphs of at least LENGTH characters from `start` on, where they end); empty if the book ends first.

    A paragraph with anything UNWANTED begins the passage anew.
    """
    found: list[str] = []
    place = text.find("\n\n", start) + 2
    while place > 1 and sum(map(len, found)) < LENGTH:
        end = text.find("\n\n", place)
        if end < 0:
            return "", len(text)
        paragraph = " ".join(text[place:end].split()).replace("_", "")
        found = [] if UNWANTED.search(paragraph) else [*found, paragraph]
        place = end + 2
    return "\n\n".join(part for part in found if part), place


def is_held_out(text: str) -> bool:
    """Not in the training split of text=files, which the model was trained on."""
    return split_of(hashlib.sha256(text.encode()).hexdigest()) != "train"


def passages(books: Path) -> list[dict[str, str]]:
    rows = pq.read_table(books, columns=["text", "title"]).to_pylist()
    seen = "\0".join(row["text"] for row in rows if not is_held_out(row["text"]))
    found = []
    for start, author in BOOKS.items():
        titled = [row for row in rows if row["title"].startswith(start) and is_held_out(row["text"])]
        if len(titled) != 1:
            raise SystemExit(
                f"{books}: {len(titled)} books begin with {start!r} in their title and are held out, not 1"
            )
        (book,) = titled
        end = 0
        for fraction in PLACES:
            text, end = passage(book["text"], max(end, int(fraction * len(book["text"]))))
            probes = [text[int(at * len(text)) :][:60] for at in (0.25, 0.5, 0.75)]
            if not text or any(probe in seen for probe in probes):  # another edition is in the training split
                print(f"left out: {start} at {fraction}")
                continue
            found.append({"title": start, "author": author, "text": text})
    return found


if __name__ == "__main__":
    table = pa.Table.from_pylist(passages(Path(sys.argv[1])))
    pq.write_table(table, TARGET, compression="zstd", compression_level=22)
    characters = sum(map(len, table["text"].to_pylist()))
    sha256 = hashlib.sha256(TARGET.read_bytes()).hexdigest()
    print(
        f"{TARGET}: {len(table)} passages, {characters:,} characters, {TARGET.stat().st_size:,} bytes, sha256 {sha256}"
    )
