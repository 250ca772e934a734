// The life of an identity by the directory's own client library, at the URL that is given. Each step is read at once.
import assert from 'node:assert/strict'
import { P256Keypair, Secp256k1Keypair } from '@atproto/crypto'
import plc from '@did-plc/lib'

const client = new plc.Client(process.argv[2])
const [owner, host, thief] = await Promise.all([
  Secp256k1Keypair.create(),
  P256Keypair.create(),
  P256Keypair.create(),
])

const did = await client.createDid({
  signingKey: host.did(),
  rotationKeys: [owner.did(), host.did()],
  handle: 'alice.example.com',
  pds: 'https://pds.example.com',
  signer: owner,
})
assert.equal((await client.getDocument(did)).id, did)

await client.updateAtprotoKey(did, host, owner.did())
assert.equal((await client.getDocumentData(did)).verificationMethods.atproto, owner.did())
await client.updateHandle(did, host, 'alice.example.org')
assert.deepEqual((await client.getDocumentData(did)).alsoKnownAs, ['at://alice.example.org'])
await client.updatePds(did, owner, 'https://other.example.com')
assert.equal((await client.getDocument(did)).service[0].serviceEndpoint, 'https://other.example.com')

// Whoever has stolen the key of the host takes the identity over, and its owner takes it back.
await client.updateRotationKeys(did, host, [thief.did()])
assert.deepEqual((await client.getDocumentData(did)).rotationKeys, [thief.did()])
const before = (await client.getOperationLog(did)).at(-2)
await client.sendOperation(did, await plc.updateRotationKeysOp(before, owner, [owner.did()]))
assert.deepEqual((await client.getDocumentData(did)).rotationKeys, [owner.did()])
assert.deepEqual(
  (await client.getAuditableLog(did)).map((entry) => entry.nullified),
  [false, false, false, false, true, false],
)
await plc.validateOperationLog(did, await client.getOperationLog(did))

await assert.rejects(client.updateHandle(did, thief, 'thief.example.com'), (error) => {
  assert.equal(error.status, 400)
  assert.match(error.data.message, /^Invalid signature on op: /)
  return true
})

await client.tombstone(did, owner)
await assert.rejects(client.getDocument(did), (error) => {
  assert.deepEqual([error.status, error.data], [404, { message: `DID not available: ${did}` }])
  return true
})
console.log(did)
