// Go's golang.org/x/mod/sumdb, the client of the Go checksum database: note, inclusion, consistency, tiles.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type Case struct {
	Name, Vkey, Origin, Root, Leaf string
	Size, Index                    int64
	Proof, Consistency             []string
	OldSize                        int64  `json:"old_size"`
	OldRoot                        string `json:"old_root"`
}

// A malformed case must end the run, not count as refused.
func raw(text string) []byte {
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return data
}

func hash(text string) (h tlog.Hash) {
	copy(h[:], raw(text))
	return
}

func hashes(texts []string) (found []tlog.Hash) {
	for _, text := range texts {
		found = append(found, hash(text))
	}
	return
}

// The tiles of our folder, in the layout of c2sp.org/tlog-tiles: the client's own paths have a height in them.
type folder string

func (folder) Height() int                      { return 8 }
func (folder) SaveTiles([]tlog.Tile, [][]byte) {}
func (f folder) ReadTiles(tiles []tlog.Tile) (found [][]byte, err error) {
	for _, tile := range tiles {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := os.ReadFile(filepath.Join(string(f), path))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return
}

func open(path string, c Case) (tree tlog.Tree, err error) {
	verifier, err := note.NewVerifier(c.Vkey)
	if err != nil {
		panic(err)
	}
	signed, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		return
	}
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != c.Origin {
		return tree, errors.New("another origin")
	}
	if _, err = fmt.Sscanf(lines[1], "%d", &tree.N); err != nil {
		return
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return
}

func verify(path string, c Case) error {
	tree, err := open(filepath.Join(path, "log/checkpoint"), c)
	if err != nil {
		return err
	}
	old, err := open(filepath.Join(path, "old.checkpoint"), c)
	if err != nil {
		return err
	}
	leaf := tlog.RecordHash(raw(c.Leaf))
	if err := tlog.CheckRecord(hashes(c.Proof), tree.N, tree.Hash, c.Index, leaf); err != nil {
		return err
	}
	if err := tlog.CheckTree(hashes(c.Consistency), tree.N, tree.Hash, c.OldSize, hash(c.OldRoot)); err != nil {
		return err
	}
	reader := tlog.TileHashReader(tree, folder(filepath.Join(path, "log")))
	record, err := tlog.ProveRecord(tree.N, c.Index, reader)
	if err != nil {
		return err
	}
	for i, h := range record {
		if i >= len(c.Proof) || !bytes.Equal(h[:], raw(c.Proof[i])) {
			return errors.New("another proof than ours from the tiles")
		}
	}
	grown, err := tlog.ProveTree(tree.N, old.N, reader)
	if err != nil {
		return err
	}
	return tlog.CheckTree(grown, tree.N, tree.Hash, old.N, old.Hash)
}

func main() {
	for _, path := range os.Args[1:] {
		data, err := os.ReadFile(filepath.Join(path, "case.json"))
		if err != nil {
			panic(err)
		}
		var c Case
		if err := json.Unmarshal(data, &c); err != nil {
			panic(err)
		}
		if err := verify(path, c); err != nil {
			fmt.Printf("%s\trefused\t%v\n", c.Name, err)
		} else {
			fmt.Printf("%s\taccepted\n", c.Name)
		}
	}
}
